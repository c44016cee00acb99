//! `validate`: says what is wrong, and leaves no trace.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::TcpListener;

use e2e::{config, loopback, responder, run, run_with};
use serde_json::{Value, json};

fn validate(text: &str) -> e2e::Finished {
    run_with(&["validate", "--config", "-"], |_| {}, text.as_bytes())
}

#[test]
fn a_good_configuration_is_called_valid_on_standard_output() {
    let ip = loopback();
    let finished = validate(&config(json!({"a": responder(&format!("{ip}:80"), "x")})).to_string());
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(
        (&*finished.stdout, &*finished.stderr),
        ("Valid configuration\n", "")
    );
    for nothing in ["{}", "null", "{\"apps\":{}}"] {
        assert_eq!(validate(nothing).code, Some(0), "{nothing}");
    }
}

#[test]
fn validating_opens_no_socket_and_writes_no_file() {
    let ip = loopback();
    // An address that is taken, a socket file that exists, and a directory to leave things in.
    let taken = TcpListener::bind((ip, 80)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("l4.sock");
    fs::write(&socket, "not a socket").unwrap();
    let file = dir.path().join("l4.json");
    let servers = json!({"a": responder(&format!("{ip}:80"), "x"), "b": responder(&format!("unix/{}", socket.display()), "x")});
    fs::write(&file, config(servers).to_string()).unwrap();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    let finished = run_with(
        &["validate", "--config", file.to_str().unwrap()],
        |command| {
            command
                .env("HOME", &home)
                .env_remove("XDG_DATA_HOME")
                .env_remove("XDG_CONFIG_HOME")
                .current_dir(&dir);
        },
        b"",
    );
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(fs::read_to_string(&socket).unwrap(), "not a socket");
    assert_eq!(fs::read_dir(&home).unwrap().count(), 0);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    drop(taken);
}

#[test]
fn warnings_are_printed_with_their_place_and_do_no_harm() {
    let server = |listen: &str, routes: Value| json!({"listen": [listen], "routes": routes});
    let respond = json!([{"handler": "respond", "body": "x"}]);
    let never = server(
        "127.0.0.1:80",
        json!([{"handle": respond.clone()}, {"handle": respond.clone()}]),
    );
    let late = server(
        "127.0.0.1:25",
        json!([{"match": [{"tls": {}}], "handle": respond.clone()}, {"handle": respond}]),
    );
    for (server, place, said) in [
        (never, "/apps/layer4/servers/a/routes/1", "never"),
        (late, "/apps/layer4/servers/a/listen/0", "matching_timeout"),
    ] {
        let finished = validate(&config(json!({"a": server})).to_string());
        assert_eq!(finished.code, Some(0), "{finished:?}");
        assert_eq!(finished.stdout, "Valid configuration\n");
        assert!(finished.stderr.starts_with("warning: "), "{finished:?}");
        assert!(finished.stderr.contains("--> stdin:1:"), "{finished:?}");
        assert!(
            finished.stderr.contains(place) && finished.stderr.contains(said),
            "{finished:?}"
        );
    }
}

#[test]
fn what_may_surprise_is_noted() {
    let proxy =
        json!({"handler": "proxy", "upstreams": [{"dial": ["127.0.0.1:1", "127.0.0.1:2"]}]});
    let server = json!({"listen": ["127.0.0.1:80"], "routes": [{"handle": [proxy]}]});
    let finished = validate(&config(json!({"a": server})).to_string());
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(finished.stdout, "Valid configuration\n");
    assert!(finished.stderr.starts_with("note: "), "{finished:?}");
    assert!(
        finished.stderr.contains("/routes/0/handle/0/upstreams/0"),
        "{finished:?}"
    );
}

#[test]
fn every_error_of_a_file_is_reported_at_once() {
    let text = r#"{
	"apps": {"layer4": {"servers": {"a": {
		"listen": ["127.0.0.1:99999"],
		"routes": [
			{"match": [{"tlss": {}}], "handle": [{"handler": "echo", "loud": true}]},
			{"handle": [{"handler": "ecko"}]}
		]
	}}}}
}"#;
    let finished = validate(text);
    assert_eq!(finished.code, Some(1));
    assert_eq!(finished.stdout, "");
    for said in [
        "stdin:3:14",
        "layer4.matchers.tlss",
        "\"tls\"",
        "loud",
        "layer4.handlers.ecko",
        "\"echo\"",
    ] {
        assert!(
            finished.stderr.contains(said),
            "{said}: {}",
            finished.stderr
        );
    }
    assert!(
        finished.stderr.ends_with("4 errors\n"),
        "{}",
        finished.stderr
    );
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.json");
    let not_text = dir.path().join("not-text.json");
    fs::write(&not_text, b"{\"a\": \"\xFF\"}").unwrap();
    for (path, said) in [
        (&missing, "does not exist"),
        (&dir.path().to_owned(), "is a directory"),
        (&not_text, "UTF-8"),
    ] {
        let path = path.to_str().unwrap();
        let finished = run(&["validate", "--config", path]);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert!(
            finished.stderr.contains(path) && finished.stderr.contains(said),
            "{}",
            finished.stderr
        );
        assert!(
            finished.stderr.ends_with("1 error\n"),
            "{}",
            finished.stderr
        );
    }
}

#[test]
fn env_files_are_read_before_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let env = dir.path().join("env");
    let text = config(json!({"a": responder("{env.E2E_ADDRESS}", "x")})).to_string();
    for (line, code) in [
        ("E2E_ADDRESS=127.0.0.1:80", Some(0)),
        ("E2E_ADDRESS=127.0.0.1:http", Some(1)),
    ] {
        fs::write(&env, line).unwrap();
        let args = [
            "validate",
            "--config",
            "-",
            "--envfile",
            env.to_str().unwrap(),
        ];
        let finished = run_with(&args, |_| {}, text.as_bytes());
        assert_eq!(finished.code, code, "{finished:?}");
    }
    fs::write(&env, "E2E ADDRESS=1").unwrap();
    let finished = run(&[
        "validate",
        "--config",
        "x",
        "--envfile",
        env.to_str().unwrap(),
    ]);
    assert_eq!(finished.code, Some(1));
    assert!(
        finished.stderr.contains("invalid key on line 1"),
        "{finished:?}"
    );
}
