//! Whom PostgreSQL runs as: it refuses root.

use std::path::Path;

/// An entry of the password file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The user to drop to when this process is root: `postgres`, else `nobody`; nothing for an ordinary user.
pub(crate) fn unprivileged() -> Option<User> {
    if !is_root() {
        return None;
    }
    let passwords = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    Some(find(&passwords, "postgres").or_else(|| find(&passwords, "nobody")).unwrap_or(User { uid: 65534, gid: 65534 }))
}

/// Gives `path` to the user PostgreSQL will run as, if that is another one.
pub(crate) fn give(path: &Path) -> std::io::Result<()> {
    match unprivileged() {
        Some(user) => std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)),
        None => Ok(()),
    }
}

fn find(passwords: &str, name: &str) -> Option<User> {
    passwords.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        Some(User { uid: fields.nth(1)?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    })
}

#[cfg(test)]
mod tests {
    use super::{User, find};

    #[test]
    fn a_user_is_found_by_its_whole_name() {
        let passwords = "root:x:0:0::/:/bin/sh\npostgresql:x:7:7::/:\npostgres:x:101:104:a,b:/var:/bin/bash\n";

        assert_eq!(find(passwords, "postgres"), Some(User { uid: 101, gid: 104 }));
        assert_eq!(find(passwords, "nobody"), None);
    }
}
