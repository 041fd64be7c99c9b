//! The connections beside the one that carries messages: scouts, the standby, and the witness of the way back.

use std::time::{Duration, Instant};

use super::{Courier, Output};
use crate::{
    config::{Config, Topology},
    event::Event,
    failover,
    packet::Packet,
    policy::{failback::Failback, scouting::Scouting, standby::Standby},
    scout::{self, Scout},
    session::Session,
    witness::{self, Witness},
};

/// Attempts from here on are not the client's own.
const ASIDE: u64 = 1 << 60;
const STANDBY: u64 = ASIDE;
const PREFERRED: u64 = 1 << 61;
/// How much longer than a scout we have to have waited, after one move that brought no acknowledgement; twice that after
/// two, and so on up to the time after which NATS itself lets go of what it holds. A cluster that serves scouts at once
/// and us late would drive us from node to node for ever.
const PATIENCE: Duration = Duration::from_millis(250);
const MOST_PATIENCE: Duration = Duration::from_secs(4);

/// Three machines, and when each is wanted.
#[derive(Debug)]
pub(super) struct Aside {
    scout: Scout,
    standby: Option<Witness>,
    preferred: Witness,
    failback: Failback,
    /// A loss or a suspicion, and no acknowledgement since.
    troubled: bool,
    /// Moves to where a scout was served, and no acknowledgement since.
    in_vain: u32,
}

/// What an attempt that is not the client's own is told.
pub(super) enum Word {
    Opened,
    Closed(String),
    Received(Packet),
}

impl Aside {
    pub(super) fn new(config: &Config, session: &Session, now: Instant) -> Self {
        let connects: Vec<_> = (0..config.brokers.len()).map(|broker| session.connect_to(broker)).collect();
        let scouting = match config.topology {
            Topology::Cluster => config.scouting.clone(),
            Topology::Independent => Scouting::none(),
        };
        let witness =
            |suffix, first| Witness::new(connects.clone(), suffix, config.liveness.probes_every(), config.seed, first);
        Self {
            standby: (config.standby == Standby::Probe).then(|| witness("~standby", STANDBY)),
            preferred: witness("~failback", PREFERRED),
            scout: Scout::new(connects.clone(), &scouting, config.seed, now),
            failback: Failback::new(config.selection.failback_after),
            troubled: false,
            in_vain: 0,
        }
    }

    pub(super) const fn owns(attempt: u64) -> bool {
        attempt >= ASIDE
    }

    pub(super) fn tell(&mut self, now: Instant, attempt: u64, word: Word) {
        if attempt >= scout::FIRST_ATTEMPT {
            self.scout.handle_input(
                now,
                match word {
                    Word::Opened => scout::Input::Opened { attempt },
                    Word::Closed(_) => scout::Input::Closed { attempt },
                    Word::Received(packet) => scout::Input::Received { attempt, packet },
                },
            );
            return;
        }
        let witness = if attempt >= PREFERRED { Some(&mut self.preferred) } else { self.standby.as_mut() };
        if let Some(witness) = witness {
            witness.handle_input(
                now,
                match word {
                    Word::Opened => witness::Input::Opened { attempt },
                    Word::Closed(reason) => witness::Input::Closed { attempt, reason },
                    Word::Received(packet) => witness::Input::Received { attempt, packet },
                },
            );
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.scout.handle_timeout(now);
        self.preferred.handle_timeout(now);
        if let Some(standby) = self.standby.as_mut() {
            standby.handle_timeout(now);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let standby = self.standby.as_ref().and_then(Witness::poll_timeout);
        [self.scout.poll_timeout(), standby, self.preferred.poll_timeout()].into_iter().flatten().min()
    }

    /// Where another broker is known to work.
    pub(super) fn proven_broker(&self) -> Option<usize> {
        self.standby.as_ref().and_then(Witness::standing).map(|(broker, _)| broker)
    }

    pub(super) fn is_seeking(&self, now: Instant) -> bool {
        self.scout.is_seeking(now)
    }

    pub(super) fn trouble(&mut self, troubled: bool) {
        self.troubled = troubled;
    }

    /// The main connection was given an acknowledgement of what it sent.
    pub(super) fn acknowledged(&mut self) {
        self.troubled = false;
        self.in_vain = 0;
    }

    fn patience(&self) -> Duration {
        let Some(doublings) = self.in_vain.checked_sub(1) else { return Duration::ZERO };
        PATIENCE.saturating_mul(2_u32.saturating_pow(doublings)).min(MOST_PATIENCE)
    }

    pub(super) fn silent(&mut self, now: Instant, broker: usize) {
        self.scout.handle_input(now, scout::Input::Silent { broker });
    }

    pub(super) fn failback(&mut self) -> &mut Failback {
        &mut self.failback
    }
}

impl Courier {
    /// Tells the machines beside what has become of the main connection.
    pub(super) fn settle_aside(&mut self, now: Instant) {
        let seeks = !self.stopped && (self.serving.is_none() || self.aside.troubled || self.is_held());
        self.aside.scout.handle_input(now, scout::Input::Seek(seeks));
        self.aside.scout.handle_input(now, scout::Input::Serving(self.serving));
        self.failover.handle_input(now, failover::Input::Scouting(self.aside.is_seeking(now)));
        // While nobody serves us the witnesses stay where they are: they know more than we.
        if let Some(serving) = self.serving {
            if let Some(standby) = self.aside.standby.as_mut() {
                let ranking = self.failover.ranking(now, serving);
                standby.handle_input(now, witness::Input::Watch(ranking));
            }
            let better = if self.aside.failback.is_wanted() { (0..serving).collect() } else { Vec::new() };
            self.aside.preferred.handle_input(now, witness::Input::Watch(better));
        }
        if self.stopped {
            self.aside.stop(now);
        }
        self.return_if_due(now);
    }

    /// Where to go back to, and when: while all is well, and no such move is under way.
    pub(super) fn return_due(&self) -> Option<(usize, Instant)> {
        let is_calm = !self.aside.troubled && !self.suspicion.isolates();
        let is_well = self.serving.is_some() && is_calm && !self.failover.is_moving();
        let (broker, since) = self.aside.preferred.standing().filter(|_| is_well)?;
        Some((broker, self.aside.failback.due(since)?))
    }

    fn return_if_due(&mut self, now: Instant) {
        if let Some((broker, _)) = self.return_due().filter(|(_, at)| *at <= now) {
            self.failover.handle_input(now, failover::Input::Return { broker });
        }
    }

    /// One output of the machines beside; false when all are quiet.
    pub(super) fn take_aside(&mut self, now: Instant) -> bool {
        if let Some(output) = self.aside.scout.poll_output() {
            match output {
                scout::Output::Dial { attempt, broker, deadline } => {
                    self.outputs.push_back(Output::Dial { attempt, broker, deadline });
                }
                scout::Output::Send { attempt, packet } => self.outputs.push_back(Output::Send { attempt, packet }),
                scout::Output::HangUp { attempt } => self.outputs.push_back(Output::HangUp { attempt }),
                scout::Output::Proven { broker, since } => self.proven(now, broker, since),
            }
            return true;
        }
        if let Some(output) = self.aside.preferred.poll_output() {
            self.on_witness(now, output, false);
            return true;
        }
        if let Some(output) = self.aside.standby.as_mut().and_then(Witness::poll_output) {
            self.on_witness(now, output, true);
            return true;
        }
        false
    }

    fn on_witness(&mut self, now: Instant, output: witness::Output, is_standby: bool) {
        match output {
            witness::Output::Dial { attempt, broker, deadline } => {
                self.outputs.push_back(Output::Dial { attempt, broker, deadline });
            }
            witness::Output::Send { attempt, packet } => self.outputs.push_back(Output::Send { attempt, packet }),
            witness::Output::HangUp { attempt } => self.outputs.push_back(Output::HangUp { attempt }),
            witness::Output::Stood { broker } if is_standby => {
                let broker = self.broker(broker);
                self.emit(Event::StandbyReady { broker });
            }
            witness::Output::Fell { broker, reason, .. } if is_standby => {
                self.failover.handle_input(now, failover::Input::Unfit { broker });
                let broker = self.broker(broker);
                self.emit(Event::StandbyLost { broker, reason });
            }
            witness::Output::Stood { .. } | witness::Output::Fell { .. } => {}
        }
    }

    /// Whether a node that may be electing has something of ours, and has acknowledged nothing yet.
    fn is_held(&self) -> bool {
        self.electing && self.session.waiting_since().is_some()
    }

    /// A connection that the last outage brought us, and that has acknowledged nothing yet, is left when a scout that
    /// departed later was served: the broker holds what it cannot store, and lets go of it seconds late.
    fn proven(&mut self, now: Instant, broker: usize, since: Instant) {
        let proven = failover::Input::Proven { broker, since };
        let Some(attempt) = self.failover.holder().filter(|_| self.serving.is_some()) else {
            return self.failover.handle_input(now, proven);
        };
        let patience = self.aside.patience();
        let waits = self.session.waiting_since().is_some_and(|waiting| waiting + patience < since);
        if self.electing && waits {
            self.aside.in_vain = self.aside.in_vain.saturating_add(1);
            self.failover.handle_input(now, proven);
            self.outputs.push_back(Output::HangUp { attempt });
            let reason = format!("{} acknowledges and this one does not", self.broker(broker));
            self.end_connection(now, reason, false);
            self.failover.handle_input(now, failover::Input::Left { attempt });
        }
    }
}

impl Aside {
    pub(super) fn has_output(&self) -> bool {
        let standby = self.standby.as_ref().is_some_and(Witness::has_output);
        self.scout.has_output() || self.preferred.has_output() || standby
    }

    fn stop(&mut self, now: Instant) {
        self.scout.handle_input(now, scout::Input::Stop);
        self.preferred.handle_input(now, witness::Input::Watch(Vec::new()));
        if let Some(standby) = self.standby.as_mut() {
            standby.handle_input(now, witness::Input::Watch(Vec::new()));
        }
    }
}
