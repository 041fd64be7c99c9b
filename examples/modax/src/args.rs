//! The command line: flags, their units and defaults.

mod value;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser as Text;
use clap::{Args, Parser, Subcommand, ValueEnum};
use modax_db_router::WriteToken;

use crate::mqtt::limits::Limits;

/// Publishes, subscribes, writes and reads through brokers and databases that fail over.
#[derive(Debug, Parser)]
#[command(
    name = "modax",
    version,
    about,
    // A missing command is bad usage like any other: one line.
    arg_required_else_help = false,
    after_help = "\
Results are JSON lines on stdout, one object a line; diagnostics and events are JSON lines on stderr.
Exit code: 0 when every line was acknowledged or committed, 2 on bad usage, 1 otherwise."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Publish each line of stdin; one outcome line for each.
    Pub(PubArgs),
    /// Print each message of a topic filter; acknowledged once its line is flushed.
    Sub(SubArgs),
    /// Look into the directory of `pub --queue` while no process has it open.
    Queue(QueueArgs),
    /// Run each line of stdin, {"sql","params"}, as one transaction on the primary; a JSON array is an SQL array.
    Write(WriteArgs),
    /// Run each line of stdin, {"sql","params"}, as a query on the primary or a replica. A numeric is printed as a
    /// string with every digit, a type JSON has no word for as the server's text; columns need names of their own.
    Read(ReadArgs),
    /// Print what is known of the database cluster.
    Topology(TopologyArgs),
    /// Create, inspect or run the outbox that carries messages out of a database.
    Outbox(OutboxArgs),
    /// Bring up a cluster to play with until Ctrl-C; its addresses are printed.
    Up(LayerArgs),
    /// Break a running MODAX in six ways and report what was lost.
    Demo(DemoArgs),
}

/// Which brokers, and who we are to them.
#[derive(Debug, Args)]
pub(crate) struct BrokerArgs {
    /// Brokers, the preferred one first: `mqtt://[user:password@]host[:1883]`,…; `mqtts://` for TLS, port 8883
    #[arg(long, value_name = "URL,…", value_delimiter = ',', required = true, value_parser = Text::new())]
    pub(crate) brokers: Vec<String>,
    /// Client id; the broker keeps a session under it.
    #[arg(long, value_name = "ID", value_parser = Text::new())]
    pub(crate) client_id: String,
    /// The brokers are nodes of one cluster that share sessions (default: independent brokers). While it elects a leader,
    /// short connections under the identities ID~scout0 and so on, with empty messages to the topic modax/probe, find the
    /// node that acknowledges.
    #[arg(long)]
    pub(crate) cluster: bool,
    /// Speak MQTT 5 instead of 3.1.1: user properties, reasons, limits. The same as `?version=5` behind a URL.
    #[arg(long)]
    pub(crate) mqtt5: bool,
    /// Which broker follows one that failed; the one that failed last always comes last.
    #[arg(long, value_enum, default_value_t = BrokerOrder::Priority)]
    pub(crate) selection: BrokerOrder,
    /// Whether a silent connection to the next broker proves that it works.
    #[arg(long, value_enum, default_value_t = BrokerStandby::None)]
    pub(crate) standby: BrokerStandby,
    /// In a cluster, no connections beside the client's own.
    #[arg(long, requires = "cluster")]
    pub(crate) no_scouting: bool,
    /// Back to a more preferred broker that has been reachable for so long, such as 30s (default: never).
    #[arg(long, value_name = "TIME", value_parser = value::duration, allow_hyphen_values = true)]
    pub(crate) failback_after: Option<Duration>,
    /// For mqtts://: the authorities (PEM) a broker's certificate has to come from (default: the system's).
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// For mqtts://: our certificate (PEM), for brokers that ask for one.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The key (PEM) of --tls-cert.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// For mqtts://: the name a broker's certificate has to be for (default: the host of its URL).
    #[arg(long, value_name = "NAME")]
    pub(crate) tls_server_name: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum BrokerStandby {
    /// No connection beside the one that carries messages.
    None,
    /// One, under the identity ID~standby.
    Probe,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum BrokerOrder {
    /// The first of the list that works.
    Priority,
    /// The one after it in the list.
    RoundRobin,
}

#[derive(Debug, Args)]
pub(crate) struct PubArgs {
    #[command(flatten)]
    pub(crate) brokers: BrokerArgs,
    /// Topic of lines that name none.
    #[arg(long, value_name = "T", value_parser = value::topic)]
    pub(crate) topic: Option<String>,
    /// Quality of service of lines that name none: 0, 1 or 2.
    #[arg(long, default_value_t = 1, value_parser = value::qos, allow_hyphen_values = true)]
    pub(crate) qos: u8,
    /// Every line is a payload, without its line end (LF or CR LF), also one that looks like {"topic","payload" or "payload_base64","qos","retained","user_properties"}.
    #[arg(long)]
    pub(crate) plain: bool,
    /// After the end of input, how long to wait for outcomes, such as 30s or 500ms; what is then on its way to a disk that hangs
    /// has the outcome "unknown".
    #[arg(long, default_value = "30s", value_parser = value::duration, allow_hyphen_values = true, value_name = "TIME")]
    pub(crate) max_wait: Duration,
    /// Also print {"seq","outcome":"admitted","payload"} once a message is in the queue; with --queue once it is on
    /// disk, with its "sequence" there, which is not that of another message until the directory has been empty.
    #[arg(long)]
    pub(crate) report_admitted: bool,
    /// A message that could not be sent within this time is given up with the outcome "expired" (default: never).
    #[arg(long, value_parser = value::some_time, allow_hyphen_values = true, value_name = "TIME")]
    pub(crate) expires_in: Option<Duration>,
    /// Keep messages on disk in DIR until they are acknowledged, so that an admitted one survives this process.
    ///
    /// The next start with DIR sends what is left first, and prints {"replayed":true,"sequence","topic","outcome"}
    /// for each as soon as its outcome is known. One process at a time; made if absent. "maybe_kept" beside "rejected"
    /// says that a failing disk may have the message all the same; with files that were damaged the exit code is 1.
    #[arg(long, value_name = "DIR")]
    pub(crate) queue: Option<PathBuf>,
    /// How long a message may wait for others, so that they are written to disk together; at most 10s.
    #[arg(long, default_value = "5ms", requires = "queue", value_parser = value::duration, allow_hyphen_values = true, value_name = "TIME")]
    pub(crate) fsync_every: Duration,
    /// Write into each message which one it is, for `sub --dedup`; QoS 1 and 2, needs --mqtt5.
    ///
    /// It is the user property modax-id: client id, a number of this start, and the number of the message. Copies that
    /// are sent after a failover, or by the next start with the same --queue, have the same. A line that has a modax-id
    /// of its own keeps it.
    #[arg(long)]
    pub(crate) stamp: bool,
    #[command(flatten)]
    pub(crate) limits: Limits,
}

#[derive(Debug, Args)]
pub(crate) struct SubArgs {
    #[command(flatten)]
    pub(crate) brokers: BrokerArgs,
    /// Topic filter, with + and # as MQTT has them.
    ///
    /// What the broker still holds for another filter of this client id is acknowledged from 10 s after the start on, and
    /// told on stderr as "unmatched".
    #[arg(long, value_name = "F", value_parser = Text::new())]
    pub(crate) filter: String,
    /// Highest quality of service to receive at: 0, 1 or 2.
    #[arg(long, default_value_t = 1, value_parser = value::qos, allow_hyphen_values = true)]
    pub(crate) qos: u8,
    /// End after this many messages.
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// Print each message once: repeats are acknowledged and told on stderr only.
    ///
    /// With FIELD: two messages are the same when topic and all of these fields of their JSON payloads are, letter for
    /// letter, such as device,boot,timestamp; a payload without the fields is always printed.
    ///
    /// Without FIELD: when they carry the same modax-id (--mqtt5, and `pub --stamp` on the other side); those that carry
    /// none, when topic and payload are the same.
    ///
    /// Totals are told on stderr at the end, also of messages that were printed because nobody can tell.
    #[arg(long, value_name = "FIELD,…", value_delimiter = ',', value_parser = Text::new(), num_args = 0..=1)]
    pub(crate) dedup: Option<Vec<String>>,
    /// Messages that --dedup remembers; with modax-id, of each publisher.
    #[arg(long, default_value = "100000", requires = "dedup", value_name = "N", allow_hyphen_values = true)]
    pub(crate) dedup_window: NonZeroUsize,
    /// Publishers whose modax-id --dedup remembers, each start of one by itself; the one silent longest is forgotten for
    /// another, and its repeats are printed.
    #[arg(long, default_value = "10000", requires = "dedup", value_name = "N", allow_hyphen_values = true)]
    pub(crate) dedup_publishers: NonZeroUsize,
}

#[derive(Debug, Args)]
#[command(arg_required_else_help = false)]
pub(crate) struct QueueArgs {
    #[command(subcommand)]
    pub(crate) action: QueueAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum QueueAction {
    /// Print its files, each message that waits, and a summary; nothing is changed.
    Inspect(QueueDirectory),
    /// Print its files and a summary; exit code 0 when nothing is damaged, 1 otherwise. Nothing is changed.
    ///
    /// A write that a crash cut short at the end of a file is told and is no damage: nobody was told that it was on disk.
    Verify(QueueDirectory),
    /// Copy every readable message that waits into a new directory, and print its files and a summary.
    Salvage(SalvageArgs),
}

#[derive(Debug, Args)]
pub(crate) struct QueueDirectory {
    /// The directory given to `pub --queue`.
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct SalvageArgs {
    #[command(flatten)]
    pub(crate) from: QueueDirectory,
    /// Where to; it must hold no queue (default: DIR.salvaged).
    #[arg(long, value_name = "NEW")]
    pub(crate) to: Option<PathBuf>,
}

/// Which database.
#[derive(Debug, Args)]
pub(crate) struct DatabaseArgs {
    /// Where PostgreSQL is: postgresql://user@host1:5432,host2:5432/database
    #[arg(long, value_name = "URL", value_parser = Text::new())]
    pub(crate) url: String,
    /// Patroni's REST addresses, a hint that saves time at a failover.
    #[arg(long, value_name = "URL,…", value_delimiter = ',', value_parser = Text::new())]
    pub(crate) patroni: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct WriteArgs {
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    /// How long one line may wait for a primary, such as 30s. A COMMIT that has no answer by then is waited for and asked after
    /// for up to 20 s more, so that the outcome is known wherever it can be.
    #[arg(long, default_value = "30s", value_parser = value::some_time, allow_hyphen_values = true, value_name = "TIME")]
    pub(crate) deadline: Duration,
    /// Lines in work at once; more than 1 gives up their order.
    #[arg(long, default_value_t = 1, value_name = "N", allow_hyphen_values = true, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) concurrency: u16,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Preference {
    /// Only the primary.
    Primary,
    /// A replica that satisfies the bounds, else the primary.
    PreferReplica,
    /// Only a replica.
    Replica,
}

#[derive(Debug, Args)]
pub(crate) struct ReadArgs {
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    /// Where to read: primary, prefer-replica or replica.
    #[arg(long, default_value = "primary", value_parser = value::preference)]
    pub(crate) preference: Preference,
    /// Answers may be at most this old, such as 5s.
    #[arg(long, value_parser = value::duration, allow_hyphen_values = true, value_name = "TIME")]
    pub(crate) max_staleness: Option<Duration>,
    /// Answers must contain the write that printed this token.
    #[arg(long, value_name = "TOKEN", value_parser = value::token)]
    pub(crate) at_least: Option<WriteToken>,
    /// How long one line may wait for a node, such as 30s.
    #[arg(long, default_value = "30s", value_parser = value::some_time, allow_hyphen_values = true, value_name = "TIME")]
    pub(crate) deadline: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct TopologyArgs {
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    /// Print a line at every change, until Ctrl-C.
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
#[command(arg_required_else_help = false)]
pub(crate) struct OutboxArgs {
    #[command(subcommand)]
    pub(crate) action: OutboxAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum OutboxAction {
    /// Create the tables, or bring them to this version. Safe to run twice and at once.
    Migrate(OutboxDatabaseArgs),
    /// Print how many messages wait, are delivered, expired or parked, and who relays them.
    Status(OutboxDatabaseArgs),
    /// Carry messages from the outbox to the brokers until Ctrl-C; one event line for each.
    Relay(RelayArgs),
}

#[derive(Debug, Args)]
pub(crate) struct OutboxDatabaseArgs {
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    /// How long to wait for a primary, such as 30s.
    #[arg(long, default_value = "30s", value_parser = value::some_time, allow_hyphen_values = true, value_name = "TIME")]
    pub(crate) deadline: Duration,
    /// Schema that holds the outbox.
    #[arg(long, default_value = "modax_txn", value_name = "NAME")]
    pub(crate) schema: String,
}

#[derive(Debug, Args)]
pub(crate) struct RelayArgs {
    #[command(flatten)]
    pub(crate) outbox: OutboxDatabaseArgs,
    /// Brokers, the preferred one first: `mqtt://[user:password@]host[:1883]`,…
    #[arg(long, value_name = "URL,…", value_delimiter = ',', required = true, value_parser = Text::new())]
    pub(crate) brokers: Vec<String>,
    /// Client id at the brokers (default: a random one).
    #[arg(long, value_name = "ID", value_parser = Text::new())]
    pub(crate) client_id: Option<String>,
}

/// Where the programs of the two layers are.
#[derive(Debug, Args)]
pub(crate) struct LayerArgs {
    /// The control layer's program (default: beside this one).
    #[arg(long, value_name = "FILE")]
    pub(crate) control_layer: Option<PathBuf>,
    /// The AI layer's program (default: beside this one).
    #[arg(long, value_name = "FILE")]
    pub(crate) ai_layer: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    pub(crate) layers: LayerArgs,
    /// Where report.html and report.json are written.
    #[arg(long, default_value = "target/demo", value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Run only these scenarios (numbers from 1, in the order of the table).
    #[arg(long, value_delimiter = ',', value_name = "N,…", allow_hyphen_values = true, value_parser = clap::value_parser!(u8).range(1..=6))]
    pub(crate) only: Vec<u8>,
}

/// One sentence for what is wrong with the command line; it names the flag.
pub(crate) fn explain(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    without_passwords(lines.join(" ").trim_start_matches("error: "))
}

/// URLs without what stands before their host: one may have come where none belongs. A password may hold blanks and more, so that
/// all up to the last `@` before the next URL is left out.
pub(crate) fn without_passwords(text: &str) -> String {
    let begins = |place: &usize| {
        let scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        text[..*place].trim_end_matches(scheme).chars().next_back().is_none_or(|before| " ,'\"`(=".contains(before))
    };
    let starts: Vec<usize> = text.match_indices("://").map(|(place, _)| place).filter(begins).collect();
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    let mut shown = text[..starts.first().copied().unwrap_or(text.len())].to_owned();
    for (start, end) in starts.iter().zip(ends) {
        let part = &text[*start..end];
        match part.rfind('@') {
            Some(host) => shown.extend(["://…", &part[host..]]),
            None => shown.push_str(part),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn refused(line: &[&str]) -> String {
        let error = Cli::try_parse_from(line).expect_err("the line must be refused");
        explain(&error)
    }

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_flag_and_value_says_what_it_is_for() {
        let (mut commands, mut flags) = (vec![Cli::command()], 0);
        while let Some(command) = commands.pop() {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name} says nothing");
            for argument in command.get_arguments() {
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(!help.trim().is_empty(), "{name} {} says nothing", argument.get_id());
                let values = argument.get_possible_values();
                let silent =
                    values.iter().find(|value| argument.get_action().takes_values() && value.get_help().is_none());
                assert!(silent.is_none(), "{name} {}: {silent:?} says nothing", argument.get_id());
                flags += 1;
            }
            commands.extend(command.get_subcommands().cloned());
        }
        assert!(flags > 60, "only {flags} were looked at");
    }

    #[test]
    fn what_comes_later_is_refused_by_name() {
        let publish = ["modax", "pub", "--brokers", "mqtt://a", "--client-id", "c"];
        let line: Vec<&str> = publish.iter().copied().chain(["--standby=warm"]).collect();
        assert!(refused(&line).contains("--standby"));
        let line: Vec<&str> = publish.iter().copied().chain(["--qos", "3"]).collect();
        assert!(refused(&line).contains("--qos"));
        let read = ["modax", "read", "--url", "postgresql://a/b", "--preference", "nearest"];
        assert!(refused(&read).contains("--preference nearest is not supported"));
    }

    #[test]
    fn a_url_in_the_wrong_place_is_shown_without_its_password() {
        let publish = ["modax", "pub", "--client-id", "c", "--brokers", "mqtt://a"];
        for (word, shown) in [
            ("mqtt://user:secret@b", "mqtt://…@b"),
            ("mqtt://user:sec ret@b", "mqtt://…@b"),
            ("mqtt://user:a://sec@b", "mqtt://…@b"),
            ("mqtt://secret:secret@b,mqtt://user:sec ret@c", "mqtt://…@b,mqtt://…@c"),
        ] {
            let line: Vec<&str> = publish.iter().copied().chain([word]).collect();
            let said = refused(&line);
            assert!(said.contains(shown) && !said.contains("sec") && !said.contains("ret"), "{said}");
        }
    }

    #[test]
    fn a_missing_flag_is_named() {
        assert!(refused(&["modax", "pub", "--client-id", "c"]).contains("--brokers"));
        assert!(refused(&["modax", "write"]).contains("--url"));
        let publish = ["modax", "pub", "--brokers", "mqtt://a", "--client-id", "c", "--fsync-every", "5ms"];
        assert!(refused(&publish).contains("--queue"));
        let publish = ["modax", "pub", "--brokers", "mqtts://a", "--client-id", "c", "--tls-cert", "x.pem"];
        assert!(refused(&publish).contains("--tls-key"));
    }
}
