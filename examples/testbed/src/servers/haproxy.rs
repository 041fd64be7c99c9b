//! HAProxy, with whatever configuration the test is about.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Restartable, listening, require};
use crate::{Ground, Process, Spawn, TestbedError, bring};

const START: Duration = Duration::from_secs(10);

/// A running HAProxy.
#[derive(Debug)]
pub struct Haproxy {
    listeners: Vec<SocketAddr>,
    server: Restartable,
}

impl Ground {
    /// Starts HAProxy with this configuration; returns when it listens at every address of a `bind` line. The ports in
    /// it come from [`port`](Self::port).
    ///
    /// # Errors
    /// [`TestbedError`] when it is missing, refuses the configuration or does not listen within 10 s.
    ///
    /// # Cancel safety
    /// Safe: a process already started ends with the ground.
    pub async fn haproxy(&self, configuration: &str) -> Result<Haproxy, TestbedError> {
        require(&["haproxy"]).await?;
        let listeners = listeners(configuration);
        let Some(first) = listeners.first() else {
            return Err(TestbedError::server("haproxy", "its configuration has no line `bind ADDRESS:PORT`"));
        };
        let name = format!("haproxy-{}", first.port());
        let file = self.write(&format!("{name}.cfg"), configuration)?;
        // In the foreground, whatever the configuration says: it has to end with the ground.
        let spawn = Spawn::new(bring::program("haproxy")?).arg("-db").arg("-f").arg(file).log(name);
        let haproxy = Haproxy { server: Restartable::start(self, spawn)?, listeners };
        haproxy.listening().await?;
        Ok(haproxy)
    }
}

impl Haproxy {
    /// The addresses of its `bind` lines, in their order.
    #[must_use]
    pub fn listeners(&self) -> &[SocketAddr] {
        &self.listeners
    }

    /// Its process: the present one, or the last.
    #[must_use]
    pub fn process(&self) -> Process {
        self.server.process()
    }

    /// Kills it (SIGKILL); returns when it is gone.
    pub fn kill(&self) {
        self.process().kill();
    }

    /// Starts it again with the same configuration.
    ///
    /// # Errors
    /// [`TestbedError`] when it does not listen within 10 s.
    ///
    /// # Cancel safety
    /// Safe: it may or may not run afterwards.
    pub async fn restart(&self) -> Result<(), TestbedError> {
        self.server.restart()?;
        self.listening().await
    }

    async fn listening(&self) -> Result<(), TestbedError> {
        for address in &self.listeners {
            listening(&self.process(), *address, START).await?;
        }
        Ok(())
    }
}

/// The addresses of the `bind` lines; `*` and no address at all mean every address, so also loopback.
fn listeners(configuration: &str) -> Vec<SocketAddr> {
    let addresses = configuration.lines().filter_map(|line| {
        let address = line.trim().strip_prefix("bind ")?.split_whitespace().next()?;
        let (host, port) = address.rsplit_once(':')?;
        let host = if host.is_empty() || host == "*" || host == "0.0.0.0" { "127.0.0.1" } else { host };
        format!("{host}:{port}").parse().ok()
    });
    addresses.collect()
}

#[cfg(test)]
mod tests {
    use super::listeners;

    #[test]
    fn every_bind_line_names_a_listener() {
        let text = "defaults\n  mode http\nfrontend a\n  bind 127.0.0.1:1500 name x\nfrontend b\n  bind *:1501\n";

        assert_eq!(listeners(text), ["127.0.0.1:1500".parse().unwrap(), "127.0.0.1:1501".parse().unwrap()]);
    }
}
