//! Which history is the database, and which were left behind.
//!
//! A promotion branches a new history off at a *switch point*: what the old primary writes beyond it is not part of
//! the database any more, although the old primary does not know. The fence remembers what this router has seen, and
//! judges by it whoever says "I am the primary" and whoever says "I replay". Its law: a timeline's number alone never
//! wins, because two histories can bear the same one, and what cannot be known is [`StandbyVerdict::Unproven`], not
//! assumed.
//!
//! Pure: observations in, verdicts out.

use std::collections::BTreeSet;

use crate::lsn::{Lsn, SystemId, Timeline};
use crate::observation::{Activity, Incarnation, Observation, StartTime};
use crate::topology::NodeId;

/// Lives and renounced histories remembered; older ones are forgotten, and what depended on them becomes unknown.
const MEMORY: usize = 64;

/// Where an older life was cut off when this one began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Floor {
    /// Everything up to here survived; what lay beyond was cut off.
    At(Lsn),
    /// A clean start: nothing was cut off.
    Clean,
    /// Not known: this router did not see the beginning of that life.
    Unknown,
}

/// One life of a primary of the current history.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Life {
    /// Where it ran.
    pub node: NodeId,
    /// Its identity.
    pub incarnation: Incarnation,
    /// Where the life before it was cut off.
    pub floor: Floor,
}

impl Life {
    /// A life on that server.
    #[must_use]
    pub const fn new(node: NodeId, incarnation: Incarnation, floor: Floor) -> Self {
        Self { node, incarnation, floor }
    }
}

/// The lives of the current history's primaries in order, as far as this router saw them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    lives: Vec<Life>,
}

impl Lineage {
    /// A lineage of these lives, oldest first.
    #[must_use]
    pub const fn new(lives: Vec<Life>) -> Self {
        Self { lives }
    }

    /// The lives, oldest first.
    #[must_use]
    pub fn lives(&self) -> &[Life] {
        &self.lives
    }

    /// The newest life.
    #[must_use]
    pub fn current(&self) -> Option<&Life> {
        self.lives.last()
    }

    /// The floors of all restarts and promotions since `origin`; `None` if this router does not know `origin`.
    #[must_use]
    pub fn floors_since(&self, origin: &Incarnation) -> Option<impl Iterator<Item = Floor> + '_> {
        let index = self.lives.iter().position(|life| life.incarnation == *origin)?;
        Some(self.lives.iter().skip(index + 1).map(|life| life.floor))
    }

    /// Up to which position a history that ended before the current timeline is part of the current one.
    ///
    /// `Err` if that is not known; `Ok(None)` if `timeline` is the current one, of which nothing was branched off.
    pub(crate) fn switch_point_after(&self, timeline: Timeline) -> Result<Option<Lsn>, Unknown> {
        let Some(current) = self.current() else { return Err(Unknown) };
        if current.incarnation.timeline <= timeline {
            return Ok(None);
        }
        let mut lowest: Option<Lsn> = None;
        let mut previous: Option<Timeline> = None;
        for life in &self.lives {
            let branch = life.incarnation.timeline;
            let began = previous != Some(branch);
            // The first life this router saw says nothing about where its own timeline began.
            if branch > timeline && began {
                let (Floor::At(floor), Some(parent)) = (life.floor, previous) else { return Err(Unknown) };
                if lowest.is_none() && parent > timeline {
                    return Err(Unknown);
                }
                lowest = Some(lowest.map_or(floor, |known| known.min(floor)));
            }
            previous = Some(branch);
        }
        lowest.map(Some).ok_or(Unknown)
    }

    /// Whether this router saw a history being left behind.
    #[must_use]
    pub fn has_branched(&self) -> bool {
        self.lives
            .windows(2)
            .any(|pair| matches!(pair, [earlier, later] if earlier.incarnation.timeline != later.incarnation.timeline))
    }

    fn push(&mut self, life: Life) {
        if self.lives.len() >= MEMORY {
            self.lives.remove(0);
        }
        self.lives.push(life);
    }
}

/// This router did not see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unknown;

/// Why a server that is out of recovery is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// On a timeline that this router saw being left behind.
    LeftBehind,
    /// On a history that does not descend from the current one.
    Fork,
    /// It belongs to another database cluster.
    Foreign,
}

/// What a server out of recovery is, seen from the current history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeadVerdict {
    /// There is no current history yet.
    First,
    /// The current primary, in the life that is known.
    Same,
    /// The current primary after a restart in place.
    Restarted,
    /// A promotion that descends from the current history, as far as can be seen.
    Successor,
    /// A different history that was never seen left behind: while the current primary lives, a split brain;
    /// afterwards refused.
    Rival,
    /// Refused.
    Refused(Refusal),
}

/// What a server in recovery is, seen from the current history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StandbyVerdict {
    /// It follows the current history.
    Current,
    /// It stopped before the current history branched off: old, and true.
    Ancestor,
    /// It may be on the current history; this cannot be shown.
    Unproven,
    /// It has replayed what the current history has not.
    Divergent,
    /// It belongs to another database cluster.
    Foreign,
}

/// What the fence remembers of one server besides the current history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Start of the server's life in which it was last seen in recovery.
    standby_start: Option<StartTime>,
    /// The timeline it wrote when it was last seen out of recovery.
    wrote: Option<Timeline>,
    /// It was seen in recovery after it was seen writing: writing the same timeline again would be a fork.
    stepped_down: bool,
    /// It was seen with data that the current history has not, in the life that began at this time.
    tainted: Option<StartTime>,
}

/// The memory of histories. See the module's text.
#[derive(Clone, Debug, Default)]
pub struct Fence {
    lineage: Lineage,
    renounced: Vec<(SystemId, Timeline, Floor)>,
    /// Servers seen on a fork that bears the current number, and not seen otherwise since: while there is one, the
    /// number shows nothing.
    forks: BTreeSet<NodeId>,
}

impl Fence {
    /// A fence that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The lives of the current history.
    #[must_use]
    pub const fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// Judges a server that is out of recovery.
    #[must_use]
    pub fn judge_head(&self, node: &NodeId, seen: &Observation, record: &Record) -> HeadVerdict {
        let Some(incarnation) = seen.incarnation() else { return HeadVerdict::Rival };
        let Some(current) = self.lineage.current() else { return HeadVerdict::First };
        let known = current.incarnation;
        if incarnation.system != known.system {
            return HeadVerdict::Refused(Refusal::Foreign);
        }
        if current.node == *node && known == incarnation && !record.stepped_down {
            return HeadVerdict::Same;
        }
        let floor = floor_of(seen);
        if self.is_renounced(incarnation, floor) || incarnation.timeline < known.timeline {
            return HeadVerdict::Refused(Refusal::LeftBehind);
        }
        if incarnation.timeline == known.timeline {
            // A promotion never takes a number that exists: who stepped down and writes the same number again, or
            // writes it on another machine, is on another branch.
            let same_branch = current.node == *node && !record.stepped_down;
            return if same_branch { HeadVerdict::Restarted } else { HeadVerdict::Rival };
        }
        let branched_before = match (floor, current.floor) {
            (Floor::At(new), Floor::At(old)) => new < old,
            _ => false,
        };
        // Who follows a fork of the current number is promoted to the next one, as a true successor would be.
        if record.tainted.is_some() || branched_before || !self.forks.is_empty() {
            HeadVerdict::Rival
        } else {
            HeadVerdict::Successor
        }
    }

    /// Judges a server in recovery.
    #[must_use]
    pub fn judge_standby(&self, seen: &Observation, record: &Record) -> StandbyVerdict {
        let Some(current) = self.lineage.current() else { return StandbyVerdict::Unproven };
        if seen.system != current.incarnation.system {
            return StandbyVerdict::Foreign;
        }
        let Activity::Replaying { replayed: Some(replayed), at_least, received } = seen.activity else {
            return StandbyVerdict::Unproven;
        };
        let timeline = received.map_or(at_least, |known| known.max(at_least));
        if record.tainted == Some(seen.started) && timeline >= current.incarnation.timeline {
            return StandbyVerdict::Divergent;
        }
        if timeline == current.incarnation.timeline {
            // Who wrote this number and does not any more should be following the next one.
            let own = record.stepped_down && record.wrote == Some(timeline);
            let ambiguous = own || !self.forks.is_empty();
            return if ambiguous { StandbyVerdict::Unproven } else { StandbyVerdict::Current };
        }
        match self.lineage.switch_point_after(timeline) {
            Ok(Some(switch)) if replayed <= switch => StandbyVerdict::Ancestor,
            Ok(Some(_)) if received.is_some() => StandbyVerdict::Divergent,
            Ok(_) | Err(Unknown) => StandbyVerdict::Unproven,
        }
    }

    /// Makes that server's life the newest of the current history.
    ///
    /// `record` tells whether this router saw the life begin; `blind` that too much may have happened unseen.
    pub fn adopt(&mut self, node: &NodeId, seen: &Observation, record: &Record, blind: bool) {
        let Some(incarnation) = seen.incarnation() else { return };
        let floor = match (self.lineage.current(), floor_of(seen)) {
            (Some(_), _) if blind => Floor::Unknown,
            (Some(current), floor) if current.incarnation.timeline == incarnation.timeline => floor,
            // A promotion does not restart the server. Another start means that the floor may be a later restart's.
            (Some(current), floor @ Floor::At(_)) => {
                let witnessed = record.standby_start == Some(incarnation.started);
                let next = current.incarnation.timeline.number().checked_add(1) == Some(incarnation.timeline.number());
                if witnessed && next { floor } else { Floor::Unknown }
            }
            (None, _) | (Some(_), Floor::Clean | Floor::Unknown) => Floor::Unknown,
        };
        self.lineage.push(Life { node: node.clone(), incarnation, floor });
    }

    /// Makes that server's history the current one by an operator's decision; the one before it is renounced.
    pub fn accept(&mut self, node: &NodeId, seen: &Observation) {
        let Some(incarnation) = seen.incarnation() else { return };
        if let Some(old) = self.lineage.current().cloned()
            && (old.incarnation.system, old.incarnation.timeline) != (incarnation.system, incarnation.timeline)
        {
            self.renounce(old.incarnation.system, old.incarnation.timeline, old.floor);
        }
        self.renounced
            .retain(|&(system, timeline, _)| (system, timeline) != (incarnation.system, incarnation.timeline));
        let life = Life { node: node.clone(), incarnation, floor: Floor::Unknown };
        self.lineage = Lineage::new(vec![life]);
    }

    /// Remembers that this server writes another history of the current number.
    pub fn note_fork(&mut self, node: &NodeId) {
        self.forks.insert(node.clone());
    }

    /// That server was seen in recovery, in another life: its fork is gone.
    pub fn clear_fork(&mut self, node: &NodeId) {
        self.forks.remove(node);
    }

    /// Remembers a history as left behind.
    pub fn renounce(&mut self, system: SystemId, timeline: Timeline, floor: Floor) {
        if self.renounced.len() >= MEMORY {
            self.renounced.remove(0);
        }
        self.renounced.push((system, timeline, floor));
    }

    fn is_renounced(&self, incarnation: Incarnation, floor: Floor) -> bool {
        self.renounced.iter().any(|&(system, timeline, at)| {
            let same_number = (system, timeline) == (incarnation.system, incarnation.timeline);
            let another_branch = matches!((at, floor), (Floor::At(a), Floor::At(b)) if a != b);
            same_number && !another_branch
        })
    }
}

impl Record {
    /// Notes what a probe saw of this server, after it was judged.
    pub fn note(&mut self, seen: &Observation) {
        match seen.activity {
            Activity::Writing { timeline, .. } => {
                // A new number is a promotion; the old one again is what `stepped_down` is there to remember.
                self.stepped_down &= self.wrote == Some(timeline);
                self.wrote = Some(timeline);
            }
            Activity::Replaying { .. } => {
                self.stepped_down |= self.wrote.is_some();
                self.standby_start = Some(seen.started);
            }
        }
    }

    /// Notes that this life of the server has data that the current history has not.
    pub const fn taint(&mut self, started: StartTime) {
        self.tainted = Some(started);
    }

    /// Notes that the server was seen on the current history.
    pub const fn clear_taint(&mut self) {
        self.tainted = None;
    }

    /// Whether that life of the server is not the one in which it was seen with other data.
    #[must_use]
    pub fn is_another_life(&self, started: StartTime) -> bool {
        self.tainted != Some(started)
    }

    /// Whether it was seen with data that the current history has not.
    #[must_use]
    pub const fn is_tainted(&self) -> bool {
        self.tainted.is_some()
    }
}

fn floor_of(seen: &Observation) -> Floor {
    match seen.activity {
        Activity::Writing { floor: Some(at), .. } => Floor::At(at),
        Activity::Writing { floor: None, .. } => Floor::Clean,
        Activity::Replaying { .. } => Floor::Unknown,
    }
}
