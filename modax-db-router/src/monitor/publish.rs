//! The picture that everybody else sees.

use super::{
    Activity, Ejection, Event, HeadVerdict, Instant, Monitor, Node, NodeState, Output, Role, StandbyVerdict, Topology,
    Watch, WritesClosed,
};

impl Monitor {
    /// Makes a new picture; its epoch is higher if routing changed.
    pub(super) fn publish(&mut self, now: Instant) {
        let nodes: Vec<Node> =
            self.watches.iter().enumerate().map(|(index, watch)| self.describe(now, index, watch)).collect();
        let writable = match (&self.leader, self.closed) {
            (Some(leader), None) => Ok((leader.node, leader.incarnation)),
            (None, None) => Err(WritesClosed::NoPrimary),
            (_, Some(why)) => Err(why),
        };
        let before = &self.published;
        let same_routing = before.writable == writable
            && before.nodes.iter().zip(&nodes).all(|(old, new)| (old.role, old.state) == (new.role, new.state));
        self.tell_ejections(&nodes);
        self.published = Topology {
            epoch: self.published.epoch + u64::from(!same_routing),
            nodes,
            writable,
            system: self.fence.lineage().current().map(|life| life.incarnation.system),
            lineage: self.fence.lineage().clone(),
            made_at: Some(now),
        };
        self.outputs.push_back(Output::Publish(self.published.clone()));
    }

    fn describe(&self, now: Instant, index: usize, watch: &Watch) -> Node {
        let observation = watch.seen.as_ref().map(|seen| &seen.observation);
        let role = match observation.map(|seen| seen.activity) {
            Some(Activity::Writing { .. }) => Role::Primary,
            Some(Activity::Replaying { .. }) => Role::Replica,
            None => Role::Unknown,
        };
        let is_leader = self.leader.as_ref().is_some_and(|leader| leader.node == index && !leader.lost);
        let state = self.state_of(index, watch, role, is_leader);
        let position = observation.and_then(crate::observation::Observation::position);
        let fresh_at = match (role, state) {
            (Role::Primary, NodeState::Usable | NodeState::Draining) => watch.seen.as_ref().map(|seen| seen.sent),
            (Role::Replica, NodeState::Usable) => position.and_then(|replayed| self.samples.fresh_at(replayed)),
            _ => None,
        };
        let comparable = matches!(state, NodeState::Usable | NodeState::Draining);
        let lag_bytes = match (comparable, self.samples.newest(), position) {
            (true, Some(newest), Some(position)) => Some(newest.bytes_since(position)),
            _ => None,
        };
        Node {
            id: watch.id.clone(),
            role,
            timeline: observation.map(crate::observation::Observation::timeline),
            position,
            lag_bytes,
            lag: fresh_at.map(|at| now.saturating_duration_since(at)),
            state,
            fresh_at,
            started: observation.map(|seen| seen.started),
        }
    }

    fn state_of(&self, index: usize, watch: &Watch, role: Role, is_leader: bool) -> NodeState {
        if watch.failures >= self.pace.fall || watch.seen.is_none() {
            return watch.failure.map_or(NodeState::Unseen, |(failure, _)| NodeState::Unreachable(failure));
        }
        match role {
            Role::Unknown => NodeState::Unseen,
            Role::Replica => match watch.standby {
                StandbyVerdict::Current | StandbyVerdict::Ancestor => NodeState::Usable,
                StandbyVerdict::Unproven => NodeState::Unproven,
                StandbyVerdict::Divergent | StandbyVerdict::Foreign => NodeState::Fenced,
            },
            Role::Primary if matches!(watch.verdict, Some(HeadVerdict::Refused(_))) => NodeState::Fenced,
            Role::Primary if self.split.contains(&index) => NodeState::SplitBrain,
            Role::Primary if is_leader && self.closed == Some(WritesClosed::Draining) => NodeState::Draining,
            Role::Primary if is_leader => NodeState::Usable,
            Role::Primary => NodeState::Unconfirmed,
        }
    }

    fn tell_ejections(&mut self, nodes: &[Node]) {
        for (index, (watch, node)) in self.watches.iter_mut().zip(nodes).enumerate() {
            let why = match (node.role, node.state) {
                (Role::Replica, NodeState::Unreachable(failure)) => Some(Ejection::Unreachable(failure)),
                (Role::Replica, NodeState::Fenced) if watch.standby == StandbyVerdict::Foreign => {
                    Some(Ejection::Foreign)
                }
                (Role::Replica, NodeState::Fenced) => Some(Ejection::Divergent),
                _ => None,
            };
            let event = match (watch.ejected.is_some(), why) {
                (false, Some(why)) => {
                    self.outputs.push_back(Output::Sever { node: index });
                    Event::ReplicaEjected { node: node.id.clone(), why }
                }
                (true, None) => Event::ReplicaReturned { node: node.id.clone() },
                (true, Some(_)) | (false, None) => continue,
            };
            watch.ejected = why;
            self.outputs.push_back(Output::Event(event));
        }
    }
}
