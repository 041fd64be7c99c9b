//! Who descends from whom, read from `/proc`.
//!
//! A process is identified by its id *and* its start time: ids are used again, and the testbed must never signal a
//! stranger. PostgreSQL's backends leave the postmaster's process group, so a node is found by descent, not by group.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// One process, not merely one process id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id {
    /// The process id.
    pub(crate) pid: i32,
    /// Start time in clock ticks since boot: field 22 of `/proc/PID/stat`, see proc(5).
    pub(crate) start: u64,
}

#[derive(Clone, Copy, Debug)]
struct Stat {
    id: Id,
    parent: i32,
    group: i32,
    is_dead: bool,
}

impl Id {
    /// The process that has this id at present, unless it is dead.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        stat(pid).filter(|stat| !stat.is_dead).map(|stat| stat.id)
    }

    /// Whether this very process still runs; a zombie does not.
    pub(crate) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends a signal if this very process still runs.
    pub(crate) fn signal(self, signal: Signal) {
        if let (true, Some(pid)) = (self.is_alive(), Pid::from_raw(self.pid)) {
            // It may have ended since the line above: then there is nobody to signal, which is what a caller wants.
            let _ = kill_process(pid, signal);
        }
    }
}

fn stat(pid: i32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may itself contain spaces and parentheses: read on after the last one.
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    Some(Stat {
        id: Id { pid, start: fields.get(19)?.parse().ok()? },
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        is_dead: matches!(*fields.first()?, "Z" | "X"),
    })
}

/// The roots that are alive, the members of the groups they lead or led, and every descendant of any of these.
pub(crate) fn family(roots: &[Id]) -> BTreeSet<Id> {
    let everyone: Vec<Stat> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(stat)
        .collect();
    // A group outlives its leader, and until then the leader's number is not used again. If it was, the group of that
    // number is a stranger's.
    let leaders: Vec<Id> = roots
        .iter()
        .copied()
        .filter(|root| !everyone.iter().any(|stat| stat.id.pid == root.pid && stat.id != *root))
        .collect();
    let everyone: Vec<Stat> = everyone.into_iter().filter(|stat| !stat.is_dead).collect();
    let mut family: BTreeSet<Id> = everyone.iter().map(|stat| stat.id).filter(|id| roots.contains(id)).collect();
    loop {
        let before = family.len();
        for stat in &everyone {
            let belongs = family.iter().any(|id| id.pid == stat.parent)
                || leaders.iter().any(|root| root.pid == stat.group && stat.id.start >= root.start);
            if belongs {
                family.insert(stat.id);
            }
        }
        if family.len() == before {
            return family;
        }
    }
}

/// Stops every member of the family, and whoever they started meanwhile. Returns them all.
pub(crate) fn freeze(roots: &[Id]) -> BTreeSet<Id> {
    let mut frozen = BTreeSet::new();
    // A member may fork between the look and the signal; its child is seen in the next round, and a round without
    // anybody new means that nobody is left who could fork. The limit is for a fork bomb only.
    for _ in 0..20 {
        let fresh: Vec<Id> = family(roots).into_iter().filter(|id| !frozen.contains(id)).collect();
        if fresh.is_empty() {
            break;
        }
        for id in fresh {
            id.signal(Signal::STOP);
            frozen.insert(id);
        }
    }
    frozen
}

/// Kills the whole family and waits, for 5 s at most, until the kernel has ended all of it.
pub(crate) fn kill(roots: &[Id]) -> BTreeSet<Id> {
    let family = freeze(roots);
    for id in &family {
        id.signal(Signal::KILL);
    }
    let end = Instant::now() + Duration::from_secs(5);
    while family.iter().any(|id| id.is_alive()) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    family
}
