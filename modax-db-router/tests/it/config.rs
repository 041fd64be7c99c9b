//! Configurations that cannot work are named at the start, and passwords never.

use std::time::Duration;

use modax_db_router::{ConfigError, Router};

fn refused(url: &str) -> ConfigError {
    Router::builder(url).err().unwrap_or_else(|| panic!("{url} was taken"))
}

#[test]
fn plain_text_off_this_machine_is_never_silent() {
    let error = refused("postgresql://modax@127.0.0.1,db2.example/modax");
    assert!(
        matches!(&error, ConfigError::PlaintextOffLoopback { node } if node.to_string() == "db2.example:5432"),
        "{error}"
    );
    for url in [
        "postgresql://modax@db2.example/modax?sslmode=prefer",
        "host=10.0.0.1 user=modax",
        // What is dialled is the address.
        "host=localhost hostaddr=10.0.0.1 user=modax",
        "postgresql://modax@127.0.0.1,localhost/modax?hostaddr=127.0.0.1,10.0.0.1",
    ] {
        assert!(matches!(refused(url), ConfigError::PlaintextOffLoopback { .. }), "{url}");
    }
    for url in [
        "postgresql://modax@db1,db2:5433/modax?sslmode=disable",
        "host=10.0.0.1 user=modax sslmode=disable",
        "postgresql://modax@localhost,127.0.0.2,[::1]:5433/modax",
        "postgresql://modax@127.0.0.1/modax?sslmode=allow",
        "host=db1 hostaddr=127.0.0.1 user=modax",
        "postgresql://modax@127.0.0.1:1,127.0.0.1:2/modax?target_session_attrs=read-write",
    ] {
        assert!(Router::builder(url).is_ok(), "{url}: {:?}", Router::builder(url).err());
    }
}

#[test]
fn a_wish_for_tls_is_refused_by_name() {
    for mode in ["require", "verify-ca", "verify-full"] {
        let error = refused(&format!("postgresql://modax@127.0.0.1/modax?sslmode={mode}"));
        assert!(matches!(&error, ConfigError::TlsUnsupported { mode: named } if named == mode), "{error}");
    }
}

#[test]
fn what_cannot_be_routed_is_named() {
    assert!(matches!(refused("postgresql://"), ConfigError::NoHost));
    assert!(matches!(refused("postgresql://a@127.0.0.1:1,127.0.0.1:1/x"), ConfigError::Duplicate { .. }));
    for (url, named) in [("nonsense", "postgresql://"), ("http://h", "postgresql://"), ("postgresql://h:0/d", "port 0")]
    {
        let refused = refused(url);
        assert!(matches!(refused, ConfigError::Url { .. }) && refused.to_string().contains(named), "{refused}");
    }
    let ports = refused("host=127.0.0.1,127.0.0.2,127.0.0.3 port=1,2 user=a");
    assert!(matches!(ports, ConfigError::PortCount { hosts: 3, ports: 2 } | ConfigError::Url { .. }), "{ports}");
    let outside = Router::builder("postgresql://a@127.0.0.1/x").expect("url").build();
    assert!(matches!(outside, Err(ConfigError::NoRuntime)));
    let zero = Router::builder("postgresql://a@127.0.0.1/x").expect("url").pool_size(0).build();
    assert!(matches!(zero, Err(ConfigError::Setting { setting: "pool_size", .. })));
    let endless = Router::builder("postgresql://a@127.0.0.1/x").expect("url").probe_deadline(Duration::MAX).build();
    assert!(matches!(endless, Err(ConfigError::Setting { setting: "probe_deadline", .. })));
}

#[test]
fn a_password_is_never_shown() {
    let builder = Router::builder("postgresql://modax:s3cret@127.0.0.1/modax").expect("url");
    assert!(!format!("{builder:?}").contains("s3cret"));
    for url in [
        "postgresql://modax:s3cret@db.example/modax",
        "postgresql://modax:s3cret@127.0.0.1:port/modax",
        "postgresql://modax:s3cret@127.0.0.1/modax?sslmode=verify-full",
        "postgresql://modax:s3cret@127.0.0.1/modax?unknown=1",
    ] {
        let error = refused(url);
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
    }
}

#[cfg(feature = "patroni")]
#[test]
fn a_patroni_url_is_plain_http_without_a_path() {
    let builder = || Router::builder("postgresql://modax@127.0.0.1/modax").expect("url");
    assert!(builder().patroni(["http://127.0.0.1:8008", "http://db1", "http://[::1]:8008/"]).is_ok());
    for url in ["https://db1:8008", "db1:8008", "http://", "http://db1/cluster", "http://u:s3cret@db1:8008"] {
        let error = builder().patroni([url]).err().unwrap_or_else(|| panic!("{url} was taken"));
        assert!(!error.to_string().contains("s3cret"));
    }
}

#[test]
fn a_url_with_a_slip_in_it_does_not_show_its_password() {
    let slips = [
        "postgresql:/modax:geheim@db/x?sslmode=disable",
        "'postgresql://modax:geheim@db/x?sslmode=disable'",
        " postgresql://modax:geheim@db/x?sslmode=disable",
        "Postgresql://modax:geheim@db/x?sslmode=disable",
    ];
    for slip in slips {
        let refused = Router::builder(slip).expect_err(slip).to_string();
        assert!(!refused.contains("geheim"), "{refused}");
    }
}
