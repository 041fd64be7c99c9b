//! Ways to brokers that hold packets back for a while, as TCP does when a link is cut and restored.

use std::time::Duration;

use super::{Happening, World};

/// What is cut of a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    ToBroker,
    ToClient,
    Both,
}

#[derive(Debug, Default)]
pub(crate) struct Path {
    cut: Option<Way>,
    /// In order of arrival.
    stuck: Vec<Happening>,
}

impl World {
    /// Cuts the ways to all brokers in one random order, and restores them in another.
    pub(super) fn swizzle(&mut self) {
        let way = [Way::ToBroker, Way::ToClient, Way::Both][usize::try_from(self.draw(3)).expect("small")];
        for index in 0..self.paths.len() {
            let cut = self.below(Duration::from_secs(2));
            let restored = Duration::from_secs(2) + self.below(Duration::from_secs(6));
            self.at(cut, Happening::CutPath(index, way));
            self.at(restored, Happening::RestorePath(index));
        }
    }

    pub(super) fn cut_path(&mut self, index: usize, way: Way) {
        let cut = &mut self.paths[index].cut;
        if !self.healed {
            *cut = Some(if cut.is_some_and(|cut| cut != way) { Way::Both } else { way });
        }
    }

    pub(super) fn is_cut(&self, index: usize) -> bool {
        self.paths[index].cut.is_some()
    }

    /// Everything that was held back comes now, in its order.
    pub(super) fn restore_path(&mut self, index: usize) {
        let path = &mut self.paths[index];
        let way = path.cut.take();
        let stuck = std::mem::take(&mut path.stuck);
        if !stuck.is_empty() {
            self.fired.swizzles += 1;
            self.fired.half_swizzles += u64::from(way != Some(Way::Both));
        }
        for happening in stuck {
            self.at(Duration::ZERO, happening);
        }
    }

    /// One after another.
    pub(super) fn restore_all(&mut self) {
        for index in 0..self.paths.len() {
            let wait = self.below(Duration::from_secs(5));
            self.at(wait, Happening::RestorePath(index));
        }
    }

    /// What arrives, unless its way is cut.
    pub(super) fn on_the_way(&mut self, happening: Happening) -> Option<Happening> {
        let (index, way) = match &happening {
            Happening::ToBroker { broker, .. } | Happening::EndAtBroker { broker, .. } => (*broker, Way::ToBroker),
            Happening::ToClient { attempt, .. } | Happening::EndAtClient { attempt } => {
                let Some(link) = self.links.get(attempt) else { return Some(happening) };
                (link.broker, Way::ToClient)
            }
            _ => return Some(happening),
        };
        let path = &mut self.paths[index];
        if path.cut.is_some_and(|cut| cut == way || cut == Way::Both) {
            path.stuck.push(happening);
            return None;
        }
        Some(happening)
    }
}
