//! The load balancer in front of the layers.
//!
//! A killed instance is out after two refused checks 100 ms apart, a hung one after its check's 400 ms; a request
//! that met a dying instance is sent to the other one, but only a GET is repeated after it may have been seen.

use std::fmt::Write as _;

/// Where the load balancer listens and what stands behind it.
pub(crate) struct Front<'a> {
    pub(crate) control_port: u16,
    pub(crate) ai_port: u16,
    pub(crate) stats_port: u16,
    pub(crate) control: &'a [u16],
    pub(crate) ai: &'a [u16],
}

/// The configuration as HAProxy 2.2 and later reads it.
pub(crate) fn config(front: &Front<'_>) -> String {
    let mut text = String::from(
        "global
    maxconn 4096

defaults
    mode http
    timeout connect 300ms
    timeout check 400ms
    timeout client 10s
    timeout server 5s
    timeout queue 2s
    retries 2
    option redispatch 1
    retry-on conn-failure empty-response 503
    default-server check inter 500ms fastinter 100ms downinter 200ms fall 2 rise 2 observe layer7 error-limit 1 \
         on-error fastinter on-marked-down shutdown-sessions
",
    );
    let _ = write!(
        text,
        "
frontend control
    bind 127.0.0.1:{control}
    # What may have changed something is not sent twice by the load balancer: the caller repeats it under its key.
    http-request disable-l7-retry if !METH_GET
    default_backend control_layers

frontend ai
    bind 127.0.0.1:{ai}
    http-request disable-l7-retry if !METH_GET
    default_backend ai_layers

frontend stats
    bind 127.0.0.1:{stats}
    stats enable
    stats uri /

backend control_layers
    balance roundrobin
    option httpchk GET /status
    http-check expect status 200
",
        control = front.control_port,
        ai = front.ai_port,
        stats = front.stats_port,
    );
    servers(&mut text, "control", front.control);
    text.push_str(
        "
backend ai_layers
    balance roundrobin
    option httpchk GET /models/info
    http-check expect status 200
",
    );
    servers(&mut text, "ai", front.ai);
    text
}

fn servers(text: &mut String, name: &str, ports: &[u16]) {
    for (index, port) in ports.iter().enumerate() {
        let _ = writeln!(text, "    server {name}{number} 127.0.0.1:{port}", number = index + 1);
    }
}

/// Which servers the load balancer calls up, from its statistics as CSV: (server, is up).
pub(crate) fn parse_stats(csv: &str) -> Vec<(String, bool)> {
    let mut lines = csv.lines();
    let Some(header) = lines.next() else { return Vec::new() };
    let columns: Vec<&str> = header.trim_start_matches("# ").split(',').collect();
    let column = |name: &str| columns.iter().position(|column| *column == name);
    let (Some(server), Some(status)) = (column("svname"), column("status")) else { return Vec::new() };
    lines
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            let name = *fields.get(server)?;
            let is_up = fields.get(status)?.starts_with("UP");
            (name != "FRONTEND" && name != "BACKEND").then(|| (name.to_owned(), is_up))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statistics_name_each_server_and_whether_it_is_up() {
        let csv = "# pxname,svname,status,\ncontrol,FRONTEND,OPEN,\ncontrol_layers,control1,UP 1/2,\n\
                   control_layers,control2,DOWN,\ncontrol_layers,BACKEND,UP,\n";
        assert_eq!(parse_stats(csv), [("control1".to_owned(), true), ("control2".to_owned(), false)]);
        assert!(parse_stats("").is_empty());
    }

    #[test]
    fn every_instance_stands_in_the_configuration() {
        let front = Front { control_port: 1, ai_port: 2, stats_port: 3, control: &[10, 11], ai: &[20, 21] };
        let text = config(&front);
        for line in ["control2 127.0.0.1:11", "ai1 127.0.0.1:20", "bind 127.0.0.1:3"] {
            assert!(text.contains(line), "{line}");
        }
    }
}
