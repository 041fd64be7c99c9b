//! Which Debian packages a program comes from, and where it lies on a system.

/// A set of packages that is brought as one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Set {
    /// Directory in the cache.
    pub(crate) name: &'static str,
    /// What apt is asked for; dependencies follow by themselves.
    pub(crate) packages: &'static [&'static str],
    /// Programs of this set that the testbed knows; the first is the one the others are found beside.
    pub(crate) programs: &'static [&'static str],
    /// Where these programs lie, below the root of a system or of an unpacked set. A `*` is the highest number.
    pub(crate) directories: &'static [&'static str],
    /// Whether its programs are Python.
    pub(crate) is_python: bool,
}

const BIN: &[&str] = &["usr/bin", "usr/sbin", "bin", "sbin", "usr/local/bin", "usr/local/sbin"];

const fn plain(name: &'static str, packages: &'static [&'static str], programs: &'static [&'static str]) -> Set {
    Set { name, packages, programs, directories: BIN, is_python: false }
}

static SETS: [Set; 9] = [
    plain("nats-server", &["nats-server"], &["nats-server"]),
    plain("mosquitto", &["mosquitto"], &["mosquitto"]),
    plain("etcd", &["etcd-server"], &["etcd"]),
    plain("haproxy", &["haproxy"], &["haproxy"]),
    plain("nftables", &["nftables"], &["nft"]),
    plain("iproute2", &["iproute2"], &["ip"]),
    plain("strace", &["strace"], &["strace"]),
    Set {
        name: "postgresql",
        packages: &["postgresql"],
        programs: &[
            "postgres",
            "initdb",
            "pg_ctl",
            "pg_basebackup",
            "pg_rewind",
            "pg_controldata",
            "pg_isready",
            "pg_waldump",
            "psql",
        ],
        // Debian's /usr/bin/psql is a wrapper in Perl that is of no use alone, hence not BIN.
        directories: &["usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "usr/local/pgsql/bin"],
        is_python: false,
    },
    // python3-etcd is only suggested by Debian's package, but Patroni's etcd3 driver imports it.
    Set { is_python: true, ..plain("patroni", &["patroni", "python3-etcd"], &["patroni", "patronictl"]) },
];

/// Every program of every set.
pub(crate) fn programs() -> impl Iterator<Item = &'static str> {
    SETS.iter().flat_map(|set| set.programs.iter().copied())
}

/// The set that contains a program.
pub(crate) fn set_of(program: &str) -> Option<&'static Set> {
    SETS.iter().find(|set| set.programs.contains(&program))
}

/// What the testbed never brings although something depends on it: the C library belongs to the system's loader, and
/// the rest is there for installing and administering, or (LLVM, 29 MB) for a compiler that is switched off here.
const NOT_NEEDED: [&str; 34] = [
    "adduser",
    "cron",
    "debconf",
    "dpkg",
    "gcc-12-base",
    "init-system-helpers",
    "libc-bin",
    "libc-l10n",
    "libc6",
    "libperl",
    "libllvm",
    "libz3",
    "locales",
    "logrotate",
    "lsb-base",
    "media-types",
    "netbase",
    "openssl",
    "passwd",
    "perl",
    "postgresql-client-common",
    "postgresql-common",
    "readline-common",
    "sensible-utils",
    "ssl-cert",
    "sysvinit-utils",
    "tar",
    "tzdata",
    "ucf",
    "usrmerge",
    "libpam-modules",
    "libsemanage",
    "libsepol",
    "libaudit-common",
];

/// Whether a package that apt names as a dependency is brought.
pub(crate) fn is_needed(package: &str) -> bool {
    !package.ends_with("-perl")
        && !NOT_NEEDED.iter().any(|name| match package.strip_prefix(name) {
            Some("") => true,
            // libperl5.36, libllvm14, perl-base, …; but not libc6-something of a later Debian.
            Some(rest) => {
                matches!(
                    *name,
                    "libperl" | "libllvm" | "libz3" | "perl" | "libpam-modules" | "libsemanage" | "libsepol"
                ) && rest.starts_with(|first: char| first == '-' || first.is_ascii_digit())
            }
            None => false,
        })
}

#[cfg(test)]
mod tests {
    use super::is_needed;

    #[test]
    fn libraries_are_brought_and_the_c_library_is_not() {
        for package in
            ["libpq5", "libcjson1", "postgresql-15", "python3.11-minimal", "libpam0g", "libcap-ng0", "python3-psycopg2"]
        {
            assert!(is_needed(package), "{package}");
        }
        for package in
            ["libc6", "perl-base", "libperl5.36", "libllvm14", "libjson-perl", "postgresql-common", "libz3-4"]
        {
            assert!(!is_needed(package), "{package}");
        }
    }
}
