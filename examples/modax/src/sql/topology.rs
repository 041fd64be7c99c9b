//! `modax topology`, and the router's events on stderr.

use std::time::Duration;

use modax_db_router::{Events, NodeId, Router, Topology};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{close, router};
use crate::Exit;
use crate::args::TopologyArgs;
use crate::output::{self, Output};
use crate::signal::Interrupt;

/// How long one look may take until a primary is known; after it, what is known is printed.
const LOOK: Duration = Duration::from_secs(5);
/// How often the snapshot is compared with the last one printed.
const GLANCE: Duration = Duration::from_millis(50);

/// Prints the topology once, or at every change.
pub(crate) async fn topology(args: TopologyArgs, output: Output) -> Exit {
    let Some(router) = router(&args.database, LOOK) else { return Exit::Usage };
    let Ok(mut interrupt) = Interrupt::listen() else { return Exit::Failed };
    let exit = tokio::select! {
        exit = look(&router, args.watch, &output) => exit,
        () = output.closed() => Exit::Failed,
        () = interrupt.wait() => if args.watch { Exit::Done } else { Exit::Failed },
    };
    close(&router).await;
    exit
}

async fn look(router: &Router, watch: bool, output: &Output) -> Exit {
    let deadline = Instant::now() + LOOK;
    let mut printed: Option<Value> = None;
    loop {
        let topology = router.topology();
        let complete = topology.primary().is_some() || Instant::now() >= deadline;
        let shape = shape(&topology);
        if (complete || printed.is_some()) && printed.as_ref() != Some(&shape) {
            if output.line(&describe(&topology, &router.probe_failures())).await.is_err() {
                return Exit::Failed;
            }
            printed = Some(shape);
            if !watch {
                return if topology.primary().is_some() { Exit::Done } else { Exit::Failed };
            }
        }
        sleep(GLANCE).await;
    }
}

fn describe(topology: &Topology, failures: &[(NodeId, String)]) -> Value {
    let failure = |id: &NodeId| failures.iter().find(|(of, _)| of == id).map(|(_, why)| why);
    let nodes: Vec<Value> = topology
        .nodes()
        .iter()
        .map(|node| {
            json!({
                "node": node.id.to_string(),
                "role": lower(&node.role),
                "timeline": node.timeline.map(|timeline| timeline.to_string().parse::<u64>().ok()),
                "lag_bytes": node.lag_bytes,
                "lag_ms": node.lag.map(|lag| lag.as_secs_f64() * 1e3),
                "state": lower(&node.state),
                "error": failure(&node.id),
            })
        })
        .collect();
    json!({ "epoch": topology.epoch(), "nodes": nodes })
}

/// What counts as a change: the lag moves all the time and does not.
fn shape(topology: &Topology) -> Value {
    let mut shape = describe(topology, &[]);
    if let Some(nodes) = shape["nodes"].as_array_mut() {
        for node in nodes {
            node["lag_bytes"] = Value::Null;
            node["lag_ms"] = Value::Null;
        }
    }
    shape["epoch"] = Value::Null;
    shape
}

/// `Replica` as `replica`, `NotReady { .. }` as `not_ready`.
fn lower(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    let name: String = text.chars().take_while(|c| c.is_alphanumeric()).collect();
    let mut snake = String::new();
    for (index, letter) in name.char_indices() {
        if letter.is_uppercase() && index > 0 {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

/// Prints the router's events on stderr until it is gone.
pub(crate) async fn print_events(mut events: Events) {
    while let Some(event) = events.next().await {
        output::event(&lower(&event), json!({ "detail": format!("{event:?}") }));
    }
}
