//! Which of several equally good servers answers.

/// How to choose among servers of equal rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Selection {
    /// The less busy of two taken at random: near the best balance, and no herd when many routers decide at once.
    #[default]
    LeastOfTwo,
    /// One after the other.
    RoundRobin,
}

/// Puts the chosen one first and keeps the others behind it, to be tried next.
///
/// `outstanding` tells how many queries a server has to answer now; `random` and `turn` are any numbers.
pub fn choose<T>(rank: &mut [T], selection: Selection, outstanding: impl Fn(&T) -> usize, random: u64, turn: u64) {
    let len = rank.len() as u64;
    if len < 2 {
        return;
    }
    // A remainder of a length fits what the length came from.
    let at = |number: u64| usize::try_from(number % len).unwrap_or(0);
    let chosen = match selection {
        Selection::RoundRobin => at(turn),
        Selection::LeastOfTwo => {
            let one = at(random);
            // From the other servers only, so that the two differ.
            let other = at(random % len + 1 + (random >> 32) % (len - 1));
            match (rank.get(one), rank.get(other)) {
                (Some(a), Some(b)) if outstanding(b) < outstanding(a) => other,
                _ => one,
            }
        }
    };
    rank.rotate_left(chosen);
}
