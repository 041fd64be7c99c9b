//! A web service that publishes: one client for all requests, a 503 with a reason where a message could not be
//! admitted, and a stop that sends what is left.
//!
//! `cargo run --example with_axum -- mqtt://127.0.0.1:1883 mqtt://127.0.0.1:1884`, then
//! `curl -d 21.5 http://127.0.0.1:3000/readings/press-7` and `curl http://127.0.0.1:3000/status`

use std::time::Duration;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use modax_mqtt_failover::{Client, Message, Outcome, Queue, WhenFull};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::builder("with-axum-example")
        .brokers(std::env::args().skip(1))?
        // A request must not wait for room: who is refused can try again elsewhere.
        .queue(Queue::memory().when_full(WhenFull::Reject))
        .build()?;
    let routes = Router::new()
        .route("/readings/{machine}", post(publish))
        .route("/status", get(status))
        .with_state(client.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    let stop = async { drop(tokio::signal::ctrl_c().await) };
    axum::serve(listener, routes).with_graceful_shutdown(stop).await?;
    let left = client.close(Duration::from_secs(5)).await;
    println!("{} not delivered", left.undelivered.len());
    Ok(())
}

/// 200 once a broker has it, 202 when none had it within a second (it stays in the queue), 503 when it was not admitted.
async fn publish(State(client): State<Client>, Path(machine): Path<String>, body: Bytes) -> (StatusCode, String) {
    let reading = Message::new(format!("plant/{machine}/temperature"), body).expires_in(Duration::from_secs(60));
    let receipt = match client.publish(reading).await {
        Ok(receipt) => receipt,
        Err(error) if error.is_transient() => return (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()),
    };
    match tokio::time::timeout(Duration::from_secs(1), receipt.acked()).await {
        Ok(Outcome::Acked { broker, .. }) => (StatusCode::OK, format!("acknowledged by {broker}")),
        Ok(other) => (StatusCode::BAD_GATEWAY, format!("{other:?}")),
        Err(_) => (StatusCode::ACCEPTED, "in the queue".to_owned()),
    }
}

async fn status(State(client): State<Client>) -> String {
    format!("{:?}\n{:?}", client.status(), client.stats())
}
