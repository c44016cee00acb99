//! From start to end: arguments, exit codes, signals, what is left behind.

#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::{
    Conncept, PATIENCE, Signal, ask, config, connect, drain, echo, echoes, eventually, loopback,
    pause, program, refused, responder, run, run_with,
};
use serde_json::{Value, json};

#[test]
fn sigterm_and_sigint_end_in_order_with_exit_code_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let ip = loopback();
        let mut conncept = Conncept::serving(&config(
            json!({"a": responder(&format!("{ip}:80"), "here")}),
        ));
        assert_eq!(ask((ip, 80), b""), "here");
        conncept.signal(signal);
        assert_eq!(conncept.wait().code(), Some(0));
        assert_eq!(conncept.logged("shutdown complete")["exit_code"], 0);
        assert!(refused((ip, 80)));
    }
}

#[test]
fn connections_may_finish_in_the_grace_period() {
    let ip = loopback();
    let mut settings = config(json!({"a": echo(&format!("{ip}:7"))}));
    settings["apps"]["layer4"]["grace_period"] = json!("60s");
    let mut conncept = Conncept::serving(&settings);
    let mut client = connect((ip, 7));
    let from = client.local_addr().unwrap();
    echoes(&mut client, b"before");
    conncept.signal(Signal::TERM);
    eventually("new connections are refused", || refused((ip, 7)));
    echoes(&mut client, b"in the grace period");
    let ended = Instant::now();
    drop(client);
    assert_eq!(conncept.wait().code(), Some(0));
    assert!(
        ended.elapsed() < PATIENCE,
        "it waited although nobody was left"
    );
    assert_eq!(conncept.record_of(from)["reason"], "completed");
}

#[test]
fn connections_are_ended_when_the_grace_period_is_over() {
    let ip = loopback();
    let mut settings = config(json!({"a": echo(&format!("{ip}:7"))}));
    settings["apps"]["layer4"]["grace_period"] = json!("300ms");
    let mut conncept = Conncept::serving(&settings);
    let mut client = connect((ip, 7));
    echoes(&mut client, b"before");
    conncept.signal(Signal::TERM);
    let told = Instant::now();
    assert_eq!(drain(&mut client), b"");
    assert!(
        told.elapsed() >= Duration::from_millis(250),
        "no grace at all"
    );
    assert_eq!(conncept.wait().code(), Some(0));
    assert_eq!(conncept.records()[0]["reason"], "shutdown");
}

#[test]
fn a_second_signal_ends_at_once_with_exit_code_2() {
    for (first, second) in [
        (Signal::INT, Signal::INT),
        (Signal::TERM, Signal::TERM),
        (Signal::TERM, Signal::INT),
    ] {
        let ip = loopback();
        let mut settings = config(json!({"a": echo(&format!("{ip}:7"))}));
        settings["apps"]["layer4"]["grace_period"] = json!("1h");
        let mut conncept = Conncept::serving(&settings);
        let mut client = connect((ip, 7));
        echoes(&mut client, b"still here");
        conncept.signal(first);
        conncept.logged("waiting for connections to end");
        conncept.signal(second);
        assert_eq!(conncept.wait().code(), Some(2));
        conncept.logged("force quit");
    }
}

#[test]
fn sigquit_ends_at_once_and_leaves_the_pid_file() {
    let dir = tempfile::tempdir().unwrap();
    let pidfile = dir.path().join("pid");
    let mut conncept = Conncept::serving_with(
        &config(json!({})),
        &["--pidfile", pidfile.to_str().unwrap()],
    );
    conncept.signal(Signal::QUIT);
    assert_eq!(conncept.wait().code(), Some(2));
    assert!(pidfile.exists());
}

#[test]
fn the_pid_file_holds_the_pid_and_goes_with_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let pidfile = dir.path().join("pid");
    let mut conncept = Conncept::serving_with(
        &config(json!({})),
        &["--pidfile", pidfile.to_str().unwrap()],
    );
    assert_eq!(
        fs::read_to_string(&pidfile).unwrap(),
        format!("{}\n", conncept.pid())
    );
    assert_eq!(
        fs::metadata(&pidfile).unwrap().permissions().mode() & 0o777,
        0o600
    );
    conncept.signal(Signal::TERM);
    assert_eq!(conncept.wait().code(), Some(0));
    assert!(!pidfile.exists());
}

#[test]
fn the_pid_file_of_a_process_that_serves_is_left_alone_by_one_that_cannot() {
    let dir = tempfile::tempdir().unwrap();
    let pidfile = dir.path().join("pid");
    let args = ["--pidfile", pidfile.to_str().unwrap()];
    let serving = Conncept::serving_with(&config(json!({})), &args);
    let bad = dir.path().join("bad.json");
    fs::write(&bad, r#"{"apps":{"layer4":{"servers":3}}}"#).unwrap();
    let mut second = Conncept::start(&[&["--config", bad.to_str().unwrap()], &args[..]].concat());
    assert_eq!(second.wait().code(), Some(1));
    assert_eq!(
        fs::read_to_string(&pidfile).unwrap(),
        format!("{}\n", serving.pid())
    );
}

#[test]
fn a_process_that_was_replaced_leaves_the_pid_file_to_its_successor() {
    let dir = tempfile::tempdir().unwrap();
    let pidfile = dir.path().join("pid");
    let args = ["--pidfile", pidfile.to_str().unwrap()];
    let mut first = Conncept::serving_with(&config(json!({})), &args);
    let second = Conncept::serving_with(&config(json!({})), &args);
    first.signal(Signal::TERM);
    assert_eq!(first.wait().code(), Some(0));
    assert_eq!(
        fs::read_to_string(&pidfile).unwrap(),
        format!("{}\n", second.pid())
    );
}

#[test]
fn a_pid_file_that_cannot_be_written_is_only_logged() {
    let conncept = Conncept::serving_with(&config(json!({})), &["--pidfile", "/nonexistent/pid"]);
    assert_eq!(
        conncept.logged("the pid file cannot be written")["file"],
        "/nonexistent/pid"
    );
}

#[test]
fn signals_without_a_meaning_are_logged_and_change_nothing() {
    let ip = loopback();
    let conncept = Conncept::serving(&config(
        json!({"a": responder(&format!("{ip}:80"), "here")}),
    ));
    for (signal, name) in [(Signal::HUP, "SIGHUP"), (Signal::USR2, "SIGUSR2")] {
        conncept.signal(signal);
        conncept.log_where(name, |line| {
            line["msg"] == "not implemented" && line["signal"] == name
        });
    }
    assert_eq!(ask((ip, 80), b""), "here");
}

#[test]
fn unix_socket_files_come_with_their_mode_and_go_with_the_process() {
    // Also when there is no time for a grace period.
    for signals in [&[Signal::TERM][..], &[Signal::TERM, Signal::TERM]] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l4.sock");
        let listen = format!("unix/{}|0660", path.display());
        let mut settings = config(json!({"a": echo(&listen)}));
        settings["apps"]["layer4"]["grace_period"] = json!("1h");
        let mut conncept = Conncept::serving(&settings);
        let file = fs::metadata(&path).unwrap();
        assert!(file.file_type().is_socket());
        assert_eq!(file.permissions().mode() & 0o777, 0o660);
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
        if signals.len() == 1 {
            drop(client);
            conncept.signal(signals[0]);
            assert_eq!(conncept.wait().code(), Some(0));
        } else {
            conncept.signal(signals[0]);
            conncept.logged("waiting for connections to end");
            conncept.signal(signals[1]);
            assert_eq!(conncept.wait().code(), Some(2));
        }
        assert!(!path.exists());
    }
}

#[test]
fn startup_names_every_address_with_its_real_port_and_the_number_of_routes() {
    let ip = loopback();
    let conncept = Conncept::serving(&config(json!({
        "named": {"listen": [format!("{ip}:0"), format!("udp/{ip}:53")], "routes": [
            {"match": [{"remote_ip": {"ranges": ["192.0.2.0/24"]}}], "handle": [{"handler": "close"}]},
            {"handle": [{"handler": "respond", "body": "x"}]},
        ]},
        "range": echo(&format!("{ip}:4000-4002")),
    })));
    let lines: Vec<Value> = conncept
        .logs()
        .into_iter()
        .filter(|line| line["msg"] == "listening")
        .collect();
    assert_eq!(lines.len(), 5, "{lines:?}");
    let of = |server: &str, network: &str| -> Vec<&Value> {
        lines
            .iter()
            .filter(|line| line["server"] == server && line["network"] == network)
            .collect()
    };
    assert_eq!(of("named", "tcp")[0]["routes"], 2);
    assert_eq!(of("named", "udp")[0]["address"], format!("{ip}:53"));
    assert_eq!(of("range", "tcp").len(), 3);
    let address: std::net::SocketAddr = of("named", "tcp")[0]["address"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert_ne!(address.port(), 0);
    assert_eq!(ask(address, b""), "x");
}

#[test]
fn every_connection_leaves_one_record_at_its_end() {
    let ip = loopback();
    let conncept = Conncept::serving(&config(json!({"a": echo(&format!("{ip}:7"))})));
    let mut client = connect((ip, 7));
    let from = client.local_addr().unwrap();
    echoes(&mut client, b"12345");
    drop(client);
    let record = conncept.record_of(from);
    assert_eq!(record["server"], "a");
    assert_eq!(record["network"], "tcp");
    assert_eq!(record["route"], "0");
    assert_eq!(
        (record["read"].as_u64(), record["written"].as_u64()),
        (Some(5), Some(5))
    );
    assert_eq!(record["reason"], "completed");
    assert!(record["duration_ms"].as_f64().unwrap() >= 0.0);
    assert_eq!(conncept.records().len(), 1);
}

#[test]
fn one_worker_is_enough() {
    let ip = loopback();
    let conncept = Conncept::serving_with(
        &config(json!({"a": responder(&format!("{ip}:80"), "here")})),
        &["--workers", "1"],
    );
    assert_eq!(ask((ip, 80), b""), "here");
    assert_eq!(
        conncept.reload(&config(json!({"a": responder(&format!("{ip}:80"), "there")})).to_string()),
        e2e::Reload::Done
    );
    assert_eq!(ask((ip, 80), b""), "there");
}

/// The thread that serves the client of an echo: the one that has waited most often meanwhile.
fn thread_of(conncept: &Conncept, client: &mut TcpStream) -> String {
    let waits = || -> HashMap<String, u64> {
        let threads = fs::read_dir(format!("/proc/{}/task", conncept.pid())).unwrap();
        let waits = threads.filter_map(|thread| {
            let thread = thread.unwrap();
            // It may have ended just now.
            let status = fs::read_to_string(thread.path().join("status")).ok()?;
            let mut lines = status.lines();
            let waits = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            let thread = thread.file_name().into_string().unwrap();
            Some((thread, waits.unwrap().trim().parse().unwrap()))
        });
        waits.collect()
    };
    let before = waits();
    for _ in 0..50 {
        echoes(client, b"who?");
        // Or the next comes before the thread has gone to sleep, and it never waits.
        pause(Duration::from_millis(1));
    }
    let most = waits()
        .into_iter()
        .max_by_key(|(thread, waits)| waits - before.get(thread).unwrap_or(&0));
    most.unwrap().0
}

#[test]
fn shards_keep_their_connections_over_a_reload_and_end_them_with_the_process() {
    let ip = loopback();
    let servers = |text: &str| {
        config(json!({
            "a": responder(&format!("{ip}:80"), text),
            "b": echo(&format!("{ip}:7")),
            "u": echo(&format!("udp/{ip}:7")),
        }))
    };
    let mut conncept = Conncept::serving_with(&servers("before"), &["--shards", "3"]);
    let mut clients: Vec<_> = (0..7).map(|_| connect((ip, 7))).collect();
    for client in &mut clients {
        echoes(client, b"before");
    }
    // They take turns, and each stays where it is.
    let threads: Vec<_> = (clients.iter_mut())
        .map(|client| thread_of(&conncept, client))
        .collect();
    let different: HashSet<_> = threads.iter().collect();
    assert_eq!(different.len(), 3, "{threads:?}");
    assert_eq!(threads[..4], threads[3..], "{threads:?}");
    assert_eq!(
        conncept.reload(&servers("after").to_string()),
        e2e::Reload::Done
    );
    for client in &mut clients {
        echoes(client, b"after");
    }
    for _ in 0..7 {
        assert_eq!(ask((ip, 80), b""), "after");
    }
    let last = clients.pop().unwrap();
    let from: Vec<_> = (clients.iter().map(|client| client.local_addr().unwrap())).collect();
    drop(clients);
    for from in from {
        assert_eq!(conncept.record_of(from)["reason"], "completed");
    }
    conncept.signal(Signal::TERM);
    eventually("new connections are refused", || refused((ip, 7)));
    drop(last);
    assert_eq!(conncept.wait().code(), Some(0));
}

#[test]
fn a_configuration_from_standard_input_is_read_once() {
    let ip = loopback();
    let text = config(json!({"a": responder(&format!("{ip}:80"), "from stdin")})).to_string();
    let mut child = Command::new(program())
        .args(["run", "--config", "-", "--watch", "--log-format", "json"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    eventually("it listens", || !refused((ip, 80)));
    assert_eq!(ask((ip, 80), b""), "from stdin");
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, Signal::USR1).unwrap();
    // Long enough for the signal to be handled before the next one.
    pause(Duration::from_millis(300));
    rustix::process::kill_process(process, Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("using config from stdin"), "{log}");
    assert!(log.contains("--watch has no effect"), "{log}");
    assert!(
        log.contains("last config unknown, ignored SIGUSR1"),
        "{log}"
    );
}

#[test]
fn a_signal_is_obeyed_while_the_configuration_is_still_awaited() {
    let mut child = Command::new(program())
        .args(["run", "--config", "-", "--watch"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Signals are taken over before anything is read; without that this would end with the signal.
    pause(Duration::from_millis(500));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    eventually("it ends", || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_log_that_nobody_reads_stops_nobody() {
    let ip = loopback();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("l4.json");
    fs::write(
        &file,
        config(json!({"a": responder(&format!("{ip}:80"), "here")})).to_string(),
    )
    .unwrap();
    let mut child = Command::new(program())
        .args([
            "run",
            "--log-level",
            "debug",
            "--config",
            file.to_str().unwrap(),
        ])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("it listens", || !refused((ip, 80)));
    // Every connection logs several lines; all of them are many times what a pipe and the queue hold.
    for _ in 0..4000 {
        assert_eq!(ask((ip, 80), b""), "here");
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    eventually("it ends", || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn help_and_version_go_to_standard_output() {
    for args in [&[][..], &["--help"], &["-h"], &["help"]] {
        let finished = run(args);
        assert_eq!(finished.code, Some(0), "{args:?}");
        assert!(finished.stdout.contains("Usage: conncept"), "{finished:?}");
        for command in ["run", "validate", "list-modules", "version", "environ"] {
            assert!(
                finished.stdout.contains(command),
                "{command}: {}",
                finished.stdout
            );
        }
        assert_eq!(finished.stderr, "");
    }
    let help = run(&["help", "run"]);
    assert!(
        help.code == Some(0) && help.stdout.contains("--watch"),
        "{help:?}"
    );
    for args in [&["version"][..], &["--version"], &["-v"]] {
        let finished = run(args);
        assert_eq!(finished.code, Some(0));
        assert_eq!(finished.stdout.lines().count(), 1);
        assert!(finished.stdout.starts_with("v0."), "{finished:?}");
        assert!(
            finished.stdout.ends_with("GPL-3.0-or-later\n"),
            "{finished:?}"
        );
    }
}

#[test]
fn wrong_arguments_go_to_standard_error_with_exit_code_1() {
    for (args, said) in [
        (
            &["walk"][..],
            "Error: unknown command \"walk\" for \"conncept\"",
        ),
        (&["run", "--nope"], "Error: unknown flag: --nope"),
        (&["run", "--log-level", "loud"], "loud"),
        (&["run", "--workers", "0"], "--workers"),
        (&["run", "--config"], "--config"),
        (
            &["run", "--adapter", "json"],
            "cannot adapt config without config file (use --config)",
        ),
        (
            &["run", "--config", "x", "--adapter", "yaml"],
            "unrecognized config adapter: yaml",
        ),
        (
            &["run", "--config", "Caddyfile"],
            "unrecognized config adapter: caddyfile",
        ),
        (&["validate"], "--config"),
        (&["run", "--envfile", "/nonexistent"], "/nonexistent"),
    ] {
        let finished = run(args);
        assert_eq!(finished.code, Some(1), "{args:?}: {finished:?}");
        assert_eq!(finished.stdout, "", "{args:?}");
        assert!(
            finished.stderr.starts_with("Error: "),
            "{args:?}: {}",
            finished.stderr
        );
        assert!(
            finished.stderr.contains(said),
            "{args:?}: {}",
            finished.stderr
        );
    }
}

#[test]
fn list_modules_tells_what_the_build_has() {
    let plain = run(&["list-modules"]);
    assert_eq!(plain.code, Some(0));
    let ids: Vec<&str> = plain
        .stdout
        .lines()
        .take_while(|line| !line.is_empty())
        .collect();
    assert!(ids.is_sorted());
    for id in [
        "layer4.handlers.echo",
        "layer4.handlers.proxy",
        "layer4.matchers.tls",
        "layer4.matchers.http",
    ] {
        assert!(ids.contains(&id), "{id} is not in {ids:?}");
    }
    assert!(
        plain
            .stdout
            .ends_with(&format!("\n\n  Standard modules: {}\n", ids.len())),
        "{}",
        plain.stdout
    );
    let versions = run(&["list-modules", "--versions", "--packages"]);
    assert!(
        versions.stdout.contains("layer4.handlers.echo l4-std v0."),
        "{}",
        versions.stdout
    );
    assert_eq!(run(&["list-modules", "--skip-standard"]).stdout, "");
    let list: Value = serde_json::from_str(&run(&["list-modules", "--json"]).stdout).unwrap();
    assert_eq!(list.as_array().unwrap().len(), ids.len());
    assert_eq!(list[0]["module_type"], "standard");
    assert_eq!(run(&["list-modules", "--json", "-s"]).stdout, "[]\n");
}

#[test]
fn environ_shows_the_surroundings_and_the_variables_of_env_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("env");
    fs::write(
        &file,
        "# comment\nE2E_NEW=\"from the # file\"\nexport E2E_OLD=file\n",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    let finished = run_with(
        &["environ", "--envfile", file],
        |command| {
            command.env("E2E_OLD", "process").current_dir(&dir);
        },
        b"",
    );
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let (known, variables) = finished.stdout.split_once("\n\n").unwrap();
    for name in [
        "conncept.HomeDir=",
        "conncept.Version=v0.",
        "runtime.OS=",
        "runtime.Workers=",
        "os.Getwd=",
    ] {
        assert!(
            known.lines().any(|line| line.starts_with(name)),
            "{name}: {known}"
        );
    }
    let has = |line: &str| variables.lines().any(|variable| variable == line);
    assert!(has("E2E_NEW=from the # file"), "{variables}");
    assert!(
        has("E2E_OLD=process"),
        "variables that exist are kept: {variables}"
    );
    assert!(!variables.contains("CONNCEPT_"), "{variables}");
}

#[test]
fn variables_of_env_files_reach_the_configuration() {
    let ip = loopback();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("env");
    fs::write(&file, format!("E2E_LISTEN={ip}:80\n")).unwrap();
    let conncept = Conncept::serving_with(
        &config(json!({"a": responder("{env.E2E_LISTEN}", "here")})),
        &["--envfile", file.to_str().unwrap()],
    );
    assert_eq!(ask((ip, 80), b""), "here");
    drop(conncept);
}

#[test]
fn arguments_without_a_flag_are_ignored_aloud() {
    let finished = run(&["version", "l4.json"]);
    assert_eq!(finished.code, Some(0));
    assert!(
        finished.stderr.contains("\"l4.json\" is ignored"),
        "{finished:?}"
    );
}

#[test]
fn console_logs_are_lines_for_people() {
    let finished = run_with(
        &["run", "--config", "-", "--log-format", "console"],
        |_| {},
        b"{\"apps\":{\"layer4\":{\"servers\":{\"a\":{\"listen\":[\"192.0.2.1:1\"]}}}}}",
    );
    assert_eq!(finished.code, Some(1));
    let first = finished.stderr.lines().next().unwrap();
    let columns: Vec<&str> = first.split('\t').collect();
    assert_eq!(
        columns[1..4],
        ["INFO", "conncept", "using config from stdin"],
        "{first}"
    );
    assert!(!finished.stderr.contains('\x1b'), "not a terminal");
}

#[test]
fn a_process_takes_over_from_another_and_says_that_they_share_the_port() {
    let ip = loopback();
    let with = |text: &str| config(json!({"a": responder(&format!("{ip}:80"), text)}));
    let mut old = Conncept::serving(&with("old"));
    assert_eq!(ask((ip, 80), b""), "old");
    let new = Conncept::serving(&with("new"));
    let warning = new.log_where("a warning", |line| line["level"] == "warn");
    assert_eq!(warning["address"], format!("{ip}:80"));
    assert!(
        warning["msg"]
            .as_str()
            .unwrap()
            .starts_with("another process of this user")
    );
    old.signal(Signal::TERM);
    old.wait();
    assert_eq!(ask((ip, 80), b""), "new");
}
