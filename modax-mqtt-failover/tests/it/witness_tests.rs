//! The standby, in virtual time.

use std::time::{Duration, Instant};

use modax_mqtt_failover::{
    config::Config,
    session::Session,
    witness::{Input, Output, Witness},
};

#[test]
fn two_dead_candidates_in_changing_order_are_tried_less_and_less() {
    let config = Config::from_urls("x", ["mqtt://a", "mqtt://b"]).expect("valid");
    let begin = Instant::now();
    let session = Session::new(&config);
    let connects = (0..2).map(|broker| session.connect_to(broker)).collect();
    let mut witness = Witness::new(connects, "~standby", Duration::from_secs(1), 7, 0);
    let (mut now, mut dials, mut order) = (begin, Vec::new(), vec![0, 1]);
    witness.handle_input(now, Input::Watch(order.clone()));
    while dials.len() < 12 {
        now = witness.poll_timeout().expect("it never gives up");
        witness.handle_timeout(now);
        while let Some(output) = witness.poll_output() {
            match output {
                Output::Dial { attempt, .. } => {
                    dials.push(now - begin);
                    witness.handle_input(now, Input::Closed { attempt, reason: "refused".to_owned() });
                }
                Output::Fell { .. } => {
                    // The one that fell is ranked last, each time anew.
                    order.reverse();
                    witness.handle_input(now, Input::Watch(order.clone()));
                }
                _ => {}
            }
        }
    }
    let last = dials[11].saturating_sub(dials[10]);
    assert!(last >= Duration::from_secs(5), "tried again after {last:?}: {dials:?}");
}
