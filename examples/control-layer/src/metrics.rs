//! What this instance has counted, for `/metrics`. Nothing is dropped without a number here.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
};

/// One counter that only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one; answers the new value.
    pub fn increment(&self) -> u64 {
        self.add(1)
    }

    /// Adds `n`; answers the new value.
    pub fn add(&self, n: u64) -> u64 {
        self.0.fetch_add(n, Ordering::Relaxed) + n
    }

    /// The value.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident = $metric:literal,)+) => {
        /// All counters of this instance.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $($(#[doc = $doc])+ pub $name: Counter,)+
        }

        impl Metrics {
            /// Appends all counters in Prometheus' text format.
            pub fn render(&self, out: &mut String) {
                $(
                    let help = concat!($($doc),+).trim();
                    let _ = writeln!(out, concat!("# HELP ", $metric, " {}\n# TYPE ", $metric, " counter\n", $metric, " {}"),
                                     help, self.$name.value());
                )+
            }
        }
    };
}

counters! {
    /// Readings taken from the broker and understood.
    readings_received = "modax_control_readings_received_total",
    /// Safety reports taken from the broker and understood.
    safety_received = "modax_control_safety_reports_received_total",
    /// Safety reports that were too old to count.
    safety_late = "modax_control_safety_reports_late_total",
    /// Safety reports not counted because a broker had kept them as retained messages.
    safety_retained = "modax_control_safety_reports_retained_total",
    /// Payloads that were not understood.
    payloads_refused = "modax_control_payloads_refused_total",
    /// Messages dropped because there are too many devices already.
    devices_refused = "modax_control_devices_refused_total",
    /// Times a subscription may have missed something.
    gaps = "modax_control_subscription_gaps_total",
    /// Readings shed because the buffer in front of the database was full.
    readings_shed = "modax_control_readings_shed_total",
    /// Rows of readings written by this instance.
    readings_stored = "modax_control_readings_stored_total",
    /// Readings that were stored already: by another instance, or heard twice.
    readings_copies = "modax_control_readings_copies_total",
    /// Readings that may be stored twice, under two boots.
    readings_possibly_twice = "modax_control_readings_possibly_twice_total",
    /// Boots of devices discovered by this instance.
    boots_found = "modax_control_device_boots_found_total",
    /// Readings and safety changes that the database refused for what they hold.
    rows_refused = "modax_control_rows_refused_total",
    /// Batches that had to be tried again.
    batch_retries = "modax_control_batch_retries_total",
    /// Commands made durable by this instance.
    commands_accepted = "modax_control_commands_accepted_total",
    /// Commands answered again for a repeated idempotency key.
    commands_replayed = "modax_control_commands_replayed_total",
    /// Commands refused because the plant was not safe, at the API or at the relay.
    commands_blocked = "modax_control_commands_blocked_total",
    /// Commands not accepted because the database was away.
    commands_unavailable = "modax_control_commands_unavailable_total",
    /// Audit records of blocked commands that were lost because the database was away too long.
    audits_shed = "modax_control_audits_shed_total",
    /// Commands acknowledged by a broker.
    commands_executed = "modax_control_commands_executed_total",
    /// Commands that expired or failed on the way.
    commands_failed = "modax_control_commands_failed_total",
    /// Times this instance became the one that publishes.
    leases_acquired = "modax_control_relay_leases_acquired_total",
    /// Windows the AI layer answered.
    analyses_answered = "modax_control_analyses_answered_total",
    /// Windows the AI layer did not answer, or with what cannot be used.
    analyses_failed = "modax_control_analyses_failed_total",
    /// Windows not analysed because earlier ones were with the AI layer for too long, or the database was away.
    analyses_skipped = "modax_control_analyses_skipped_total",
    /// Readings or whole windows left out of the analysis because there are too many.
    windows_refused = "modax_control_analysis_windows_refused_total",
    /// Messages that slow WebSocket clients missed.
    websocket_lagged = "modax_control_websocket_lagged_total",
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn each_counter_is_rendered_with_its_help_and_type() {
        let metrics = Metrics::default();
        metrics.readings_shed.add(3);
        let mut out = String::new();
        metrics.render(&mut out);

        assert!(
            out.contains("# TYPE modax_control_readings_shed_total counter\nmodax_control_readings_shed_total 3\n")
        );
        assert_eq!(out.matches("# HELP ").count(), out.matches("# TYPE ").count());
    }
}
