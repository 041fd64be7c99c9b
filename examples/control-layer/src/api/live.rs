//! Live messages over WebSocket. A client that is slow misses some, counted; one that does not read at all is let go.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::{
        Path, State,
        ws::{Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    http::StatusCode,
    response::{IntoResponse, Response},
};
use tokio::sync::broadcast::error::RecvError;

use super::{Api, ApiError};
use crate::contract::check_device;

/// Most clients of one instance: a plant has a handful of panels.
const MAX_CLIENTS: usize = 256;
/// Nothing is expected from a client: what is longer ends its connection.
const MAX_MESSAGE_BYTES: usize = 16 * 1024;
/// Longest time a message may take to leave.
const SEND_DEADLINE: Duration = Duration::from_secs(5);
/// A client that is gone without a word is found by this.
const PING_EVERY: Duration = Duration::from_secs(20);

static CLIENTS: AtomicUsize = AtomicUsize::new(0);

struct Place;

impl Place {
    fn take() -> Option<Self> {
        let free = |count| (count < MAX_CLIENTS).then_some(count + 1);
        CLIENTS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free).ok().map(|_| Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        CLIENTS.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) async fn all(
    State(api): State<Api>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    open(api, upgrade, None)
}

pub(super) async fn one(
    State(api): State<Api>,
    Path(id): Path<String>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    // One that is not known may be heard later; what no device can be called never is.
    if check_device(&id).is_err() {
        return super::unknown_device(&id).into_response();
    }
    open(api, upgrade, Some(id))
}

fn open(api: Api, upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>, device_id: Option<String>) -> Response {
    let Ok(upgrade) = upgrade else {
        return ApiError::new(StatusCode::UPGRADE_REQUIRED, "websocket_required", "this route speaks WebSocket")
            .into_response();
    };
    let Some(place) = Place::take() else {
        return ApiError::unavailable("too many live clients").into_response();
    };
    upgrade.max_message_size(MAX_MESSAGE_BYTES).on_upgrade(move |socket| async move {
        serve(&api, socket, device_id.as_deref()).await;
        drop(place);
    })
}

async fn serve(api: &Api, mut socket: WebSocket, device_id: Option<&str>) {
    let mut live = api.app.live.subscribe();
    let mut closing = api.closing.clone();
    let mut ping = tokio::time::interval(PING_EVERY);
    loop {
        let outgoing = tokio::select! {
            message = live.recv() => match message {
                Ok(message) if device_id.is_none_or(|id| id == message.device_id) => text(&message),
                Ok(_) => continue,
                Err(RecvError::Lagged(missed)) => {
                    api.app.metrics.websocket_lagged.add(missed);
                    continue;
                }
                Err(RecvError::Closed) => break,
            },
            incoming = socket.recv() => match incoming {
                // Nothing is expected from a client; pings are answered by the library.
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
            _ = ping.tick() => Message::Ping(axum::body::Bytes::new()),
            _ = closing.wait_for(|closing| *closing) => break,
        };
        if !matches!(tokio::time::timeout(SEND_DEADLINE, socket.send(outgoing)).await, Ok(Ok(()))) {
            return;
        }
    }
    let _ = tokio::time::timeout(SEND_DEADLINE, socket.send(Message::Close(None))).await;
}

fn text(message: &Arc<crate::app::LiveMessage>) -> Message {
    Message::Text(message.text.as_str().into())
}
