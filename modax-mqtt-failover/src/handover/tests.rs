//! What is told, and in which order.

use std::{
    future::Future,
    pin::pin,
    task::{Context, Wake},
};

use super::*;
use crate::receipt::Receipt;

type Heard = Arc<Mutex<Vec<String>>>;

struct Listener(Heard);

impl Observer for Listener {
    fn on_outcome(&self, outcome: &Outcome) {
        self.0.lock().unwrap().push(format!("{outcome:?}"));
    }
}

struct Waiting(Heard, &'static str);

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        self.0.lock().unwrap().push(self.1.to_owned());
    }
}

#[tokio::test]
async fn observers_hear_outcomes_in_order_and_who_waits_for_the_oldest_is_woken_last() {
    let heard = Heard::default();
    let config = Config::from_urls("alone", ["mqtt://a"]).unwrap();
    let shared = Shared::new(&config, Some(Arc::new(Listener(Arc::clone(&heard)))));
    let (first, older) = Receipt::new(MessageId::new(1));
    let (second, newer) = Receipt::new(MessageId::new(2));
    let (mut older, mut newer) = (pin!(older.acked()), pin!(newer.acked()));
    let waits = |who| std::task::Waker::from(Arc::new(Waiting(Arc::clone(&heard), who)));
    assert!(older.as_mut().poll(&mut Context::from_waker(&waits("older"))).is_pending());
    assert!(newer.as_mut().poll(&mut Context::from_waker(&waits("newer"))).is_pending());

    let expired = Outcome::Expired { maybe_delivered: false };
    shared.tell(vec![(Some(first), Outcome::Shed), (Some(second), expired.clone())]);

    assert_eq!(*heard.lock().unwrap(), ["Shed", &format!("{expired:?}"), "newer", "older"]);
    assert_eq!((older.await, newer.await), (Outcome::Shed, expired));
}
