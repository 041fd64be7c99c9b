//! Which servers may answer a read, in which order, and why the others may not.

use std::fmt;
use std::time::{Duration, Instant};

use crate::lsn::WriteToken;
use crate::topology::{NodeId, NodeState, Role, Topology};

/// Which servers a read wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadPreference {
    /// Only the primary.
    Primary,
    /// A replica that may serve the read; the primary if there is none.
    PreferReplica,
    /// Only replicas.
    Replica,
}

/// What a read asks of the server that answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadRequest {
    /// Which servers.
    pub preference: ReadPreference,
    /// How old the data may be; default unbounded, because then reads go on as long as any replica answers.
    pub max_staleness: Option<Duration>,
    /// A write that must be visible.
    pub at_least: Option<WriteToken>,
}

impl ReadRequest {
    /// A read with this preference, without a bound and without a token.
    #[must_use]
    pub const fn new(preference: ReadPreference) -> Self {
        Self { preference, max_staleness: None, at_least: None }
    }
}

/// Why a server may not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeftOut {
    /// The preference does not want its role.
    Preference,
    /// Its state does not allow it.
    State(NodeState),
    /// Its data may be this old (`None`: nothing can be proved), which is more than the bound.
    TooStale(Option<Duration>),
    /// It has not replayed the token's write, as far as is known.
    BehindToken,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Preference => f.write_str("not wanted by the read preference"),
            Self::State(state) => write!(f, "{state}"),
            Self::TooStale(Some(age)) => write!(f, "its data may be {age:?} old"),
            Self::TooStale(None) => f.write_str("the age of its data cannot be proved"),
            Self::BehindToken => f.write_str("it has not replayed the token's write"),
        }
    }
}

/// Who may answer a read, best first, and why the others may not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// Servers of equal rank stand together; selection chooses among them.
    pub ranks: Vec<Vec<NodeId>>,
    /// How many of the candidates are replicas that can show all that was asked; they come first.
    pub replicas: usize,
    /// Everybody else.
    pub left_out: Vec<(NodeId, LeftOut)>,
    /// The token can never be satisfied.
    pub token: TokenFate,
}

impl Plan {
    /// All candidates, best rank first.
    pub fn candidates(&self) -> impl Iterator<Item = &NodeId> {
        self.ranks.iter().flatten()
    }
}

/// What became of the write a token proves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenFate {
    /// There is no token, or its write is part of the current history.
    #[default]
    Kept,
    /// It lies on a timeline this router has not seen yet: wait.
    Ahead,
    /// It lies beyond the point where the current history branched off.
    Lost,
    /// This router did not see where the token's history ended.
    Unproven,
    /// It is of another database cluster.
    Foreign,
}

/// Decides who may answer `request`, by what `topology` says at `now`.
#[must_use]
pub fn plan(topology: &Topology, request: &ReadRequest, now: Instant) -> Plan {
    let mut plan = Plan { token: token_fate(topology, request), ..Plan::default() };
    let (mut replicas, mut primary, mut unproven) = (Vec::new(), Vec::new(), Vec::new());
    for node in topology.nodes() {
        let is_primary = topology.newest().is_some_and(|primary| primary.id == node.id);
        let verdict = if plan.token == TokenFate::Kept {
            admit(topology, node, is_primary, request, now)
        } else {
            Err(LeftOut::BehindToken)
        };
        match verdict {
            Ok(()) if is_primary => primary.push(node.id.clone()),
            Ok(()) if node.state == NodeState::Unproven => unproven.push(node.id.clone()),
            Ok(()) => replicas.push(node.id.clone()),
            Err(why) => plan.left_out.push((node.id.clone(), why)),
        }
    }
    plan.replicas = replicas.len();
    plan.ranks = [replicas, primary, unproven].into_iter().filter(|rank| !rank.is_empty()).collect();
    plan
}

fn token_fate(topology: &Topology, request: &ReadRequest) -> TokenFate {
    let (Some(token), Some(life)) = (request.at_least, topology.lineage().current()) else { return TokenFate::Kept };
    if life.incarnation.system != token.system() {
        return TokenFate::Foreign;
    }
    match topology.lineage().switch_point_after(token.timeline()) {
        Ok(Some(switch)) if token.lsn() > switch => TokenFate::Lost,
        Ok(None) if token.timeline() > life.incarnation.timeline => TokenFate::Ahead,
        Ok(_) => TokenFate::Kept,
        Err(_) => TokenFate::Unproven,
    }
}

fn admit(
    topology: &Topology,
    node: &crate::topology::Node,
    is_primary: bool,
    request: &ReadRequest,
    now: Instant,
) -> Result<(), LeftOut> {
    match (request.preference, is_primary, node.role) {
        (ReadPreference::Primary | ReadPreference::PreferReplica, true, _) => return Ok(()),
        (ReadPreference::Replica, true, _) | (_, _, Role::Primary) => return Err(preference_or_state(node)),
        (ReadPreference::Primary, false, _) => return Err(LeftOut::Preference),
        (_, false, Role::Replica | Role::Unknown) => {}
    }
    let unbounded = request.max_staleness.is_none() && request.at_least.is_none();
    match node.state {
        NodeState::Usable => {}
        NodeState::Unproven if unbounded => return Ok(()),
        state => return Err(LeftOut::State(state)),
    }
    if let Some(bound) = request.max_staleness {
        let age = node.staleness(now);
        if age.is_none_or(|age| age > bound) {
            return Err(LeftOut::TooStale(age));
        }
    }
    if let Some(token) = request.at_least {
        // The token's fate was judged before: on the current history, positions compare.
        let replayed = node.position.is_some_and(|position| position >= token.lsn());
        if !(replayed && topology.system() == Some(token.system())) {
            return Err(LeftOut::BehindToken);
        }
    }
    Ok(())
}

fn preference_or_state(node: &crate::topology::Node) -> LeftOut {
    if node.state == NodeState::Usable { LeftOut::Preference } else { LeftOut::State(node.state) }
}
