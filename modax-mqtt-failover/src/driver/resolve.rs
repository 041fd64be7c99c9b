//! Names to addresses, at each dial anew, with the last good answer as reserve.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::Shared};
use tokio::{net::lookup_host, task::JoinHandle};

use super::now;
use crate::transport::{Resolver, Resolving};

/// More addresses than this are not tried in one dial.
const MOST_ADDRESSES: usize = 16;

pub(super) struct Names {
    resolver: Arc<dyn Resolver>,
    /// The last good answer for each of our brokers' hosts.
    known: Mutex<BTreeMap<Arc<str>, Vec<IpAddr>>>,
    /// Addresses that said nothing, the latest last.
    demoted: Mutex<VecDeque<IpAddr>>,
}

impl Names {
    pub(super) fn new(resolver: Option<Arc<dyn Resolver>>) -> Self {
        Self {
            resolver: resolver.unwrap_or_else(|| Arc::new(System::default())),
            known: Mutex::default(),
            demoted: Mutex::default(),
        }
    }

    /// Tried after the other addresses of its name from now on.
    pub(super) fn demote(&self, address: IpAddr) {
        let mut demoted = lock(&self.demoted);
        demoted.retain(|other| *other != address);
        demoted.push_back(address);
        if demoted.len() > MOST_ADDRESSES {
            demoted.pop_front();
        }
    }

    /// Where `host` may be found, in the order to try; never empty.
    pub(super) async fn addresses(&self, host: &str, deadline: Instant) -> io::Result<Vec<IpAddr>> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let mut found = self.look_up(host, deadline).await?;
        let demoted = lock(&self.demoted);
        found.sort_by_key(|address| demoted.iter().position(|other| other == address));
        Ok(found)
    }

    async fn look_up(&self, host: &str, deadline: Instant) -> io::Result<Vec<IpAddr>> {
        let host: Arc<str> = Arc::from(host);
        let known = lock(&self.known).get(&host).cloned();
        let until = known.as_ref().map_or(deadline, |_| halfway(now(), deadline));
        let answer = tokio::time::timeout_at(until.into(), self.resolver.resolve(Arc::clone(&host))).await;
        let failure = match answer {
            Ok(Ok(found)) => {
                let usable = usable(found);
                if !usable.is_empty() {
                    lock(&self.known).insert(host, usable.clone());
                    return Ok(usable);
                }
                io::Error::new(io::ErrorKind::NotFound, "the name has no usable address")
            }
            Ok(Err(error)) => io::Error::new(error.kind(), format!("looking up the name: {error}")),
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, "looking up the name took too long"),
        };
        known.ok_or(failure)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn halfway(now: Instant, deadline: Instant) -> Instant {
    now + deadline.saturating_duration_since(now) / 2
}

/// Without what names no host and without repeats, at most 16; the families in turn, the first one's first (RFC 8305,
/// section 4), so that a dead family costs one interval and not one for each of its addresses.
fn usable(found: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut seen = BTreeSet::new();
    let no_host = |address: &IpAddr| {
        address.is_unspecified() || address.is_multicast() || *address == IpAddr::V4(Ipv4Addr::BROADCAST)
    };
    let good = found.into_iter().filter(|address| !no_host(address) && seen.insert(*address));
    let good: Vec<IpAddr> = good.take(MOST_ADDRESSES).collect();
    let first_family = good.first().is_some_and(IpAddr::is_ipv6);
    let (first, second): (Vec<IpAddr>, Vec<IpAddr>) =
        good.into_iter().partition(|address| address.is_ipv6() == first_family);
    let mut second = second.into_iter();
    let mut turns: Vec<IpAddr> =
        first.into_iter().flat_map(|address| [Some(address), second.next()]).flatten().collect();
    turns.extend(second);
    turns
}

/// When the next address joins the race after the one before: 250 ms as RFC 8305 (section 8) recommends, less where the
/// dial's time would not reach for all of them.
pub(super) fn stagger(addresses: usize, left: Duration) -> Duration {
    let places = u32::try_from(addresses).unwrap_or(u32::MAX).saturating_add(1);
    (left / places).clamp(Duration::from_millis(10), Duration::from_millis(250))
}

/// `getaddrinfo` on a thread, which nothing can cancel: one that hangs is joined by later dials instead of joined by
/// further threads.
#[derive(Default)]
struct System {
    under_way: Arc<Mutex<BTreeMap<Arc<str>, Lookup>>>,
}

type Lookup = Shared<std::pin::Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, (io::ErrorKind, String)>> + Send>>>;

/// Whatever became of a lookup, the next one asks anew.
struct Flight {
    under_way: Arc<Mutex<BTreeMap<Arc<str>, Lookup>>>,
    host: Arc<str>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        lock(&self.under_way).remove(&self.host);
    }
}

impl System {
    /// The lookup of this host that is under way, or else the one that `asked` is.
    fn join<F>(&self, host: &Arc<str>, asked: impl FnOnce() -> F) -> Lookup
    where
        F: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
    {
        let begin = || {
            let (under_way, host, asked) = (Arc::clone(&self.under_way), Arc::clone(host), asked());
            let asked: JoinHandle<io::Result<Vec<IpAddr>>> = tokio::spawn(async move {
                // Not before the task runs: where it never does, we still hold the lock. A panic drops it as well, such as
                // tokio's where the system has no thread for the lookup.
                let _flight = Flight { under_way, host };
                asked.await
            });
            async move {
                match asked.await {
                    Ok(Ok(found)) => Ok(found),
                    Ok(Err(error)) => Err((error.kind(), error.to_string())),
                    Err(_) => Err((io::ErrorKind::Other, "the lookup was cut short".to_owned())),
                }
            }
            .boxed()
            .shared()
        };
        lock(&self.under_way).entry(Arc::clone(host)).or_insert_with(begin).clone()
    }
}

impl Resolver for System {
    fn resolve(&self, host: Arc<str>) -> Resolving {
        let lookup = self.join(&host, || {
            let host = Arc::clone(&host);
            async move { Ok(lookup_host((&*host, 0)).await?.map(|address| address.ip()).collect()) }
        });
        Box::pin(async move { lookup.await.map_err(|(kind, text)| io::Error::new(kind, text)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns_and_the_first_one_begins() {
        let mixed = addresses("::1 ::2 ::3 10.0.0.1 10.0.0.2");
        assert_eq!(usable(mixed), addresses("::1 10.0.0.1 ::2 10.0.0.2 ::3"));
        let mixed = addresses("10.0.0.1 10.0.0.2 ::1");
        assert_eq!(usable(mixed), addresses("10.0.0.1 ::1 10.0.0.2"));
    }

    #[test]
    fn what_names_no_host_is_left_out_and_so_are_repeats_and_floods() {
        let nonsense = addresses("0.0.0.0 :: 224.0.0.1 ff02::1 255.255.255.255 10.0.0.1 10.0.0.1");
        assert_eq!(usable(nonsense), addresses("10.0.0.1"));
        let flood = (0..=255).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        assert_eq!(usable(flood).len(), MOST_ADDRESSES);
    }

    #[test]
    fn each_of_many_addresses_has_its_turn_before_the_deadline() {
        assert_eq!(stagger(2, Duration::from_secs(1)), Duration::from_millis(250));
        for many in 4..=16_u32 {
            let interval = stagger(usize::try_from(many).unwrap(), Duration::from_secs(1));
            assert!(interval * many < Duration::from_secs(1), "{many}: {interval:?}");
        }
    }

    #[tokio::test]
    async fn lookups_of_one_name_share_one_thread() {
        let system = System::default();
        let (first, second) = (system.resolve("localhost".into()), system.resolve("localhost".into()));
        assert_eq!(lock(&system.under_way).len(), 1);
        assert_eq!(first.await.unwrap(), second.await.unwrap());
        assert!(lock(&system.under_way).is_empty(), "a finished lookup is not asked again");
    }

    #[tokio::test]
    async fn f19_a_lookup_for_which_there_was_no_thread_is_not_the_last_of_its_name() {
        let (system, host) = (System::default(), Arc::from("broker"));
        let failed = system.join(&host, || async { panic!("no thread") }).await;
        assert_eq!(failed.unwrap_err().1, "the lookup was cut short");

        let found = addresses("10.0.0.1");
        let again = found.clone();
        assert_eq!(system.join(&host, || async { Ok(again) }).await, Ok(found));
    }
}
