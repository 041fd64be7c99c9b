//! What the field did with the operator's commands.

use std::collections::{BTreeMap, BTreeSet};

use crate::device::{DeviceLog, Entry};

/// One command as the operator issued it, retries included: he numbers his requests in the parameter `request`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedCommand {
    /// The value of the parameter `request`.
    pub request: String,
    /// Whether the control layer answered 200 in the end, before the next command was issued. Only such commands
    /// have a place in the order.
    pub answered: bool,
}

/// Judges commands by the devices' logs.
#[derive(Clone, Copy, Debug)]
pub struct FieldOracle;

/// What became of the commands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FieldVerdict {
    /// Commands issued.
    pub issued: u64,
    /// Of those, answered 200.
    pub answered: u64,
    /// Commands that at least one device acted on.
    pub acted: u64,
    /// Receipts a device did not act on, because it knew the `command_id`.
    pub repeats: u64,
    /// Receipts a device refused, because the command had expired.
    pub expired: u64,
    /// Acted on although never answered 200. Not an error: the answer was lost, not the command.
    pub acted_unanswered: u64,
    /// Answered 200 and acted on by no device. Not an error by itself: a command may expire, and the audit says so.
    pub answered_unseen: Vec<String>,
    /// Device and `command_id` (or request) acted on more than once.
    pub acted_twice: Vec<(String, String)>,
    /// Device and `command_id` (or request) acted on after it had expired.
    pub acted_expired: Vec<(String, String)>,
    /// Device and request first received after a request that was issued later.
    pub reordered: Vec<(String, String)>,
    /// Device and request of commands acted on that the operator never issued.
    pub phantoms: Vec<(String, String)>,
    /// Devices whose log is incomplete, so that nothing can be said.
    pub incomplete: Vec<String>,
}

impl FieldOracle {
    /// Compares what was issued, in this order, with what the devices did. Commands without the parameter `request`
    /// are judged by their `command_id` alone.
    #[must_use]
    pub fn judge(issued: &[IssuedCommand], logs: &[DeviceLog]) -> FieldVerdict {
        let places = issued.iter().enumerate().map(|(place, command)| (command.request.as_str(), place));
        let places: BTreeMap<&str, usize> = places.collect();
        let mut verdict = FieldVerdict {
            issued: issued.len() as u64,
            answered: issued.iter().filter(|command| command.answered).count() as u64,
            ..FieldVerdict::default()
        };
        let mut acted = BTreeSet::new();
        for log in logs {
            verdict.judge_device(log, issued, &places, &mut acted);
        }
        verdict.acted = acted.len() as u64;
        for (place, command) in issued.iter().enumerate() {
            match (command.answered, acted.contains(&place)) {
                (true, false) => verdict.answered_unseen.push(command.request.clone()),
                (false, true) => verdict.acted_unanswered += 1,
                _ => {}
            }
        }
        verdict
    }
}

impl FieldVerdict {
    fn judge_device(
        &mut self,
        log: &DeviceLog,
        issued: &[IssuedCommand],
        places: &BTreeMap<&str, usize>,
        acted: &mut BTreeSet<usize>,
    ) {
        if log.incomplete {
            self.incomplete.push(log.device_id.clone());
        }
        let named = |name: &str| (log.device_id.clone(), name.to_owned());
        let (mut ids, mut requests, mut received) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut furthest = 0;
        for entry in &log.entries {
            let Entry::Received { command_id, request, expired, acted: has_acted, .. } = entry else { continue };
            self.expired += u64::from(*expired && !has_acted);
            self.repeats += u64::from(!expired && !has_acted);
            if *has_acted {
                let name = command_id.as_deref().or(request.as_deref()).filter(|_| *expired);
                self.acted_expired.extend(name.map(named));
                let twice_by_id = command_id.as_deref().filter(|id| !ids.insert(*id));
                let twice_by_request = request.as_deref().filter(|request| !requests.insert(*request));
                self.acted_twice.extend(twice_by_id.or(twice_by_request).map(named));
            }
            let Some(request) = request.as_deref() else { continue };
            let Some(&place) = places.get(request) else {
                self.phantoms.push(named(request));
                continue;
            };
            if *has_acted {
                acted.insert(place);
            } else if *expired {
                // Nothing happened, so there is nothing to be in order.
                continue;
            }
            if received.insert(request) && issued.get(place).is_some_and(|command| command.answered) {
                if place < furthest {
                    self.reordered.push(named(request));
                }
                furthest = furthest.max(place);
            }
        }
    }

    /// Whether nothing was acted on twice, too late, out of order or without an order, and something was acted on.
    pub fn is_clean(&self) -> bool {
        self.acted > 0
            && self.acted_twice.is_empty()
            && self.acted_expired.is_empty()
            && self.reordered.is_empty()
            && self.phantoms.is_empty()
            && self.incomplete.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::{FieldOracle, FieldVerdict, IssuedCommand};
    use crate::device::{DeviceLog, Entry};

    fn judged(received: &[(&str, &str, bool)]) -> FieldVerdict {
        judged_late(&received.iter().map(|(id, request, acted)| (*id, *request, false, *acted)).collect::<Vec<_>>())
    }

    /// Four commands; the third was never answered.
    fn judged_late(received: &[(&str, &str, bool, bool)]) -> FieldVerdict {
        let issued =
            ["1", "2", "3", "4"].map(|request| IssuedCommand { request: request.to_owned(), answered: request != "3" });
        let entries = received.iter().map(|(id, request, expired, acted)| Entry::Received {
            command_id: Some((*id).to_owned()),
            command_type: "set_speed".to_owned(),
            request: Some((*request).to_owned()),
            expired: *expired,
            acted: *acted,
        });
        let log = DeviceLog { device_id: "d".to_owned(), entries: entries.collect(), incomplete: false };
        FieldOracle::judge(&issued, &[log])
    }

    fn found(request: &str) -> Vec<(String, String)> {
        vec![("d".to_owned(), request.to_owned())]
    }

    #[test]
    fn commands_in_order_are_clean_even_with_repeats_that_were_not_acted_on() {
        let verdict = judged(&[("a", "1", true), ("b", "2", true), ("a", "1", false), ("d", "4", true)]);
        assert!(verdict.is_clean(), "{verdict:?}");
        assert_eq!((verdict.issued, verdict.answered, verdict.acted, verdict.repeats), (4, 3, 3, 1));
    }

    #[test]
    fn a_command_id_acted_on_twice_is_found() {
        let verdict = judged(&[("a", "1", true), ("a", "1", true), ("b", "2", true)]);
        assert_eq!(verdict.acted_twice, found("a"));
    }

    #[test]
    fn one_request_that_became_two_commands_is_found() {
        let verdict = judged(&[("a", "1", true), ("other", "1", true)]);
        assert_eq!(verdict.acted_twice, found("1"));
        assert!(!verdict.is_clean());
    }

    #[test]
    fn first_receipts_out_of_order_are_found() {
        let verdict = judged(&[("b", "2", true), ("a", "1", true), ("d", "4", true)]);
        assert_eq!(verdict.reordered, found("1"));
    }

    #[test]
    fn an_expired_command_is_counted_when_refused_and_an_error_when_acted_on() {
        let late = ("a", "1", true, false);
        let verdict = judged_late(&[("b", "2", false, true), late, late, ("d", "4", false, true)]);
        assert!(verdict.is_clean(), "{verdict:?}");
        assert_eq!((verdict.expired, verdict.repeats, verdict.acted), (2, 0, 2));
        assert_eq!(verdict.answered_unseen, ["1"]);

        let verdict = judged_late(&[("a", "1", true, true), ("b", "2", false, true)]);
        assert_eq!((verdict.acted_expired.clone(), verdict.is_clean()), (found("a"), false));
    }

    #[test]
    fn a_command_without_an_answer_may_act_and_has_no_place_in_the_order() {
        let verdict = judged(&[("a", "1", true), ("b", "2", true), ("d", "4", true), ("c", "3", true)]);
        assert!(verdict.is_clean(), "{verdict:?}");
        assert_eq!(verdict.acted_unanswered, 1);
    }

    #[test]
    fn an_answered_command_that_nobody_saw_is_named_and_a_command_nobody_issued_is_an_error() {
        let verdict = judged(&[("a", "1", true), ("x", "99", true), ("d", "4", true)]);
        assert_eq!(verdict.answered_unseen, ["2"]);
        assert_eq!(verdict.phantoms, found("99"));
        assert!(!verdict.is_clean());
    }
}
