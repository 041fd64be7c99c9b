//! HTTP as the operator and the probes use it: every request has a deadline.

use std::time::Duration;

use serde_json::Value;

/// Cheap to clone; keeps its connections.
#[derive(Clone)]
pub(crate) struct Http {
    client: reqwest::Client,
}

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: u16,
    body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; null where it is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Http {
    /// No proxy from the environment: everything is on loopback.
    pub(crate) fn new() -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder().no_proxy().connect_timeout(Duration::from_secs(1)).build()?;
        Ok(Self { client })
    }

    /// One GET.
    pub(crate) async fn get(&self, url: &str, deadline: Duration) -> Result<Answer, reqwest::Error> {
        answer(self.client.get(url).timeout(deadline).send().await?).await
    }

    /// One POST of JSON; `key` makes repeats one command.
    pub(crate) async fn post(
        &self,
        url: &str,
        key: &str,
        body: &Value,
        deadline: Duration,
    ) -> Result<Answer, reqwest::Error> {
        let request = self.client.post(url).timeout(deadline).header("Idempotency-Key", key).json(body);
        answer(request.send().await?).await
    }

    /// True for a 200 within the deadline.
    pub(crate) async fn is_ok(&self, url: &str, deadline: Duration) -> bool {
        self.get(url, deadline).await.is_ok_and(|answer| answer.status == 200)
    }
}

async fn answer(response: reqwest::Response) -> Result<Answer, reqwest::Error> {
    let status = response.status().as_u16();
    Ok(Answer { status, body: response.bytes().await?.to_vec() })
}
