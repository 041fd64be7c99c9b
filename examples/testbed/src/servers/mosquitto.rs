//! Mosquitto: one MQTT broker that knows of no other.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::{Restartable, listening, persistently, require};
use crate::{Ground, Process, Spawn, TestbedError, bring};

/// It starts within 10 ms when the machine is idle; the rest is for a machine that is not.
const START: Duration = Duration::from_secs(10);

/// How a mosquitto is configured.
#[derive(Clone, Debug, Default)]
pub struct MosquittoOptions {
    /// Whether sessions and queued messages survive a restart. They are saved at every change, because the default of
    /// 1800 s loses them with a kill. Default: no.
    pub persistence: bool,
    /// Further lines of its configuration, for example `max_queued_messages 10`. Default: none.
    pub extra: String,
    /// The port, to stand a broker behind a proxy that was started first. Default: a free one.
    pub port: Option<u16>,
    /// Whether it logs errors and warnings only, for measurements: a line for each packet costs it more than the packet.
    /// Default: it logs all it does, for people who look for the cause of a failed test.
    pub quiet: bool,
}

/// A running mosquitto.
#[derive(Debug)]
pub struct Mosquitto {
    address: SocketAddr,
    server: Restartable,
}

impl Ground {
    /// Starts a mosquitto that keeps nothing.
    ///
    /// # Errors
    /// [`TestbedError`] when it is missing or does not listen within 10 s.
    ///
    /// # Cancel safety
    /// Safe: a server already started ends with the ground.
    pub async fn mosquitto(&self) -> Result<Mosquitto, TestbedError> {
        self.mosquitto_with(MosquittoOptions::default()).await
    }

    /// Starts a mosquitto.
    ///
    /// # Errors
    /// As [`mosquitto`](Self::mosquitto).
    ///
    /// # Cancel safety
    /// As [`mosquitto`](Self::mosquitto).
    pub async fn mosquitto_with(&self, options: MosquittoOptions) -> Result<Mosquitto, TestbedError> {
        require(&["mosquitto"]).await?;
        persistently(|| Mosquitto::start(self, &options)).await
    }
}

impl Mosquitto {
    async fn start(ground: &Ground, options: &MosquittoOptions) -> Result<Self, TestbedError> {
        let port = options.port.unwrap_or_else(|| ground.port());
        let name = format!("mosquitto-{port}");
        let data = ground.directory(&name, false)?;
        // Unlimited in flight: a test may hold back acknowledgements without the broker holding back messages. Root
        // stays root, because the directory is root's.
        let log = if options.quiet { "log_type error\nlog_type warning" } else { "log_type all" };
        let mut text = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\nmax_inflight_messages 0\nuser root\nlog_dest stderr\n{log}\n"
        );
        if options.persistence {
            text += "persistence true\nautosave_on_changes true\nautosave_interval 1\npersistence_location ";
            text += &data.display().to_string();
            text += "/\n";
        }
        text.push_str(&options.extra);
        text.push('\n');
        let file = ground.write(&format!("{name}.conf"), &text)?;
        let spawn = Spawn::new(bring::program("mosquitto")?).arg("-c").arg(file).log(name);
        let mosquitto =
            Self { address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), server: Restartable::start(ground, spawn)? };
        listening(&mosquitto.process(), mosquitto.address, START).await?;
        Ok(mosquitto)
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Its address as an MQTT URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("mqtt://{}", self.address)
    }

    /// Its process: the present one, or the last.
    #[must_use]
    pub fn process(&self) -> Process {
        self.server.process()
    }

    /// Kills it (SIGKILL); returns when it is gone.
    ///
    /// # Cancel safety
    /// Safe: it does not wait for anything that could be cancelled.
    #[expect(clippy::unused_async, reason = "part of an interface that is async throughout")]
    pub async fn kill(&self) {
        self.process().kill();
    }

    /// Starts it again on the same port, with what it saved; kills it first if it still runs.
    ///
    /// # Errors
    /// [`TestbedError`] when it does not listen within 10 s.
    ///
    /// # Cancel safety
    /// Safe: it may or may not run afterwards.
    pub async fn restart(&self) -> Result<(), TestbedError> {
        let process = self.server.restart()?;
        listening(&process, self.address, START).await
    }

    /// Stops it (SIGSTOP): it accepts connections and answers nothing.
    pub fn stop(&self) {
        self.process().stop();
    }

    /// Lets it go on after [`stop`](Self::stop).
    pub fn cont(&self) {
        self.process().cont();
    }
}
