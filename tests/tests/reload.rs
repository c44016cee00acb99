//! Reloads: sockets stay, connections and sessions finish on what they began with, failures change nothing.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use e2e::{
    Conncept, Reload, Signal, ask, config, connect, datagrams, drain, echo, echoes, eventually,
    exchange, loopback, pause, refused, responder, try_ask, try_exchange,
};
use serde_json::{Value, json};

/// A server on TCP and UDP port 80 of `ip` that answers with `text`.
fn both(ip: Ipv4Addr, text: &str) -> Value {
    json!({
        "listen": [format!("{ip}:80"), format!("udp/{ip}:80")],
        "routes": [{"handle": [{"handler": "respond", "body": text}]}],
    })
}

#[test]
fn new_connections_get_the_new_configuration_and_old_ones_keep_theirs() {
    let ip = loopback();
    let server = |handler: Value| json!({"listen": [format!("{ip}:80"), format!("udp/{ip}:80")], "routes": [{"handle": [handler]}]});
    let old = server(json!({"handler": "echo"}));
    let new = server(json!({"handler": "respond", "body": "new"}));
    let conncept = Conncept::serving(&config(json!({"a": old})));
    let mut stream = connect((ip, 80));
    let socket = datagrams((ip, 80));
    echoes(&mut stream, b"old stream");
    assert_eq!(exchange(&socket, b"old session"), "old session");

    assert_eq!(
        conncept.reload(&config(json!({"a": new})).to_string()),
        Reload::Done
    );

    assert_eq!(ask((ip, 80), b"x"), "new");
    assert_eq!(exchange(&datagrams((ip, 80)), b"x"), "new");
    echoes(&mut stream, b"still the old stream");
    assert_eq!(
        exchange(&socket, b"still the old session"),
        "still the old session"
    );
    let from = stream.local_addr().unwrap();
    drop(stream);
    assert_eq!(conncept.record_of(from)["reason"], "completed");
}

#[test]
fn health_checks_begin_and_end_with_their_configuration() {
    let (ip, backend) = (loopback(), TcpListener::bind("127.0.0.1:0").unwrap());
    let address = backend.local_addr().unwrap();
    let checks = Arc::new(AtomicU64::new(0));
    let count = checks.clone();
    thread::spawn(move || {
        while backend.accept().is_ok() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let checks = || checks.load(Ordering::Relaxed);
    let proxy = |interval: &str| {
        config(
            json!({"a": {"listen": [format!("{ip}:80")], "routes": [{"handle": [{
                "handler": "proxy",
                "upstreams": [{"dial": [address.to_string()]}],
                "health_checks": {"active": {"interval": interval}},
            }]}]}}),
        )
    };
    let conncept = Conncept::serving(&proxy("10ms"));
    eventually("it is checked", || checks() > 2);

    let refused = proxy("10ms").to_string().replace("10ms", "-10ms");
    assert_eq!(conncept.reload(&refused), Reload::Refused);
    let before = checks();
    eventually("it is still checked", || checks() > before + 2);

    assert_eq!(conncept.reload(&proxy("1h").to_string()), Reload::Done);
    // The last of the old checks may have been under way, and the new ones begin with one.
    pause(Duration::from_millis(100));
    let before = checks();
    pause(Duration::from_millis(200));
    assert_eq!(checks(), before);
}

#[test]
fn a_refused_configuration_changes_nothing_and_says_why() {
    let ip = loopback();
    let taken = TcpListener::bind((ip, 443)).unwrap();
    let good = config(json!({"a": both(ip, "old")}));
    let conncept = Conncept::serving(&good);
    let mut keeper = datagrams((ip, 80));
    assert_eq!(exchange(&keeper, b"x"), "old");
    // Whatever a first load leaves behind for all later ones is there now.
    assert_eq!(conncept.reload_unwritten(), Reload::Done);
    let files = conncept.open_files();
    let bad = [
        ("{".to_owned(), "ends too early", ":1:2"),
        (config(json!({"a": {"listen": [format!("{ip}:80")], "rutes": []}})).to_string(), "rutes", "/apps/layer4/servers/a"),
        (
            config(json!({"a": {"listen": [format!("{ip}:80")], "routes": [{"handle": [{"handler": "nope"}]}]}})).to_string(),
            "unknown module: layer4.handlers.nope",
            "/apps/layer4/servers/a/routes/0/handle/0",
        ),
        // The first address could be had, and must be given back.
        (
            config(json!({"a": both(ip, "new"), "b": responder(&format!("{ip}:81"), ""), "c": responder(&format!("{ip}:443"), "")}))
                .to_string(),
            "in use",
            "/apps/layer4/servers/c/listen/0",
        ),
    ];
    for (text, problem, place) in &bad {
        let before = conncept.log_count();
        assert_eq!(conncept.reload(text), Reload::Refused, "{text}");
        let said: Vec<Value> = conncept.logs().split_off(before);
        let error = said
            .iter()
            .find(|line| line["msg"] == "configuration error")
            .unwrap();
        assert_eq!(error["level"], "error");
        assert!(
            error["problem"].as_str().unwrap().contains(problem),
            "{error}"
        );
        assert!(error["place"].as_str().unwrap().contains(place), "{error}");
        assert!(
            error["place"].as_str().unwrap().contains("l4.json:"),
            "{error}"
        );
        assert_eq!(ask((ip, 80), b"x"), "old");
        keeper = datagrams((ip, 80));
        assert_eq!(exchange(&keeper, b"x"), "old");
        assert!(refused((ip, 81)));
        eventually("its descriptors are what they were", || {
            conncept.open_files() == files
        });
    }
    // A file that is gone is refused, too, and so is a directory.
    fs::remove_file(conncept.config_file()).unwrap();
    assert_eq!(conncept.reload_unwritten(), Reload::Refused);
    fs::create_dir(conncept.config_file()).unwrap();
    assert_eq!(conncept.reload_unwritten(), Reload::Refused);
    fs::remove_dir(conncept.config_file()).unwrap();
    assert_eq!(ask((ip, 80), b"x"), "old");
    drop(taken);
    let new =
        config(json!({"a": both(ip, "new"), "c": responder(&format!("{ip}:443"), "free now")}));
    assert_eq!(conncept.reload(&new.to_string()), Reload::Done);
    assert_eq!(ask((ip, 443), b""), "free now");
    drop(keeper);
}

#[test]
fn removed_addresses_close_and_added_ones_open() {
    let ip = loopback();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("l4.sock");
    let unix = format!("unix/{}", socket.display());
    let before = json!({"tcp": echo(&format!("{ip}:80")), "udp": echo(&format!("udp/{ip}:53")), "unix": echo(&unix)});
    let conncept = Conncept::serving(&config(before.clone()));
    let mut stream = connect((ip, 80));
    let session = datagrams((ip, 53));
    let mut local = UnixStream::connect(&socket).unwrap();
    echoes(&mut stream, b"x");
    exchange(&session, b"x");

    let after = json!({"tcp": echo(&format!("{ip}:81")), "udp": echo(&format!("udp/{ip}:54"))});
    assert_eq!(conncept.reload(&config(after).to_string()), Reload::Done);

    eventually("the removed address closes", || refused((ip, 80)));
    eventually("the socket file goes", || !socket.exists());
    assert_eq!(ask((ip, 81), b"added"), "added");
    assert_eq!(exchange(&datagrams((ip, 54)), b"added"), "added");
    // Who was connected is still served.
    echoes(&mut stream, b"still here");
    assert_eq!(exchange(&session, b"still here"), "still here");
    local.write_all(b"x").unwrap();
    local.read_exact(&mut [0]).unwrap();
    let gone = conncept
        .logs()
        .into_iter()
        .filter(|line| line["msg"] == "no longer listening")
        .count();
    assert_eq!(gone, 3);

    assert_eq!(conncept.reload(&config(before).to_string()), Reload::Done);
    assert_eq!(ask((ip, 80), b"back"), "back");
    assert!(socket.exists());
}

#[test]
fn servers_can_exchange_their_addresses() {
    let ip = loopback();
    let (first, second) = (format!("{ip}:80"), format!("{ip}:81"));
    let of = |a: &str, b: &str| config(json!({"a": responder(a, "a"), "b": responder(b, "b")}));
    let conncept = Conncept::serving(&of(&first, &second));
    assert_eq!(
        (ask((ip, 80), b""), ask((ip, 81), b"")),
        ("a".to_owned(), "b".to_owned())
    );
    eventually("both connections have ended", || {
        conncept.records().len() == 2
    });
    let files = conncept.open_files();
    assert_eq!(
        conncept.reload(&of(&second, &first).to_string()),
        Reload::Done
    );
    assert_eq!(
        (ask((ip, 80), b""), ask((ip, 81), b"")),
        ("b".to_owned(), "a".to_owned())
    );
    eventually("the sockets are the same", || {
        conncept.open_files() == files
    });
}

#[test]
fn the_mode_of_a_socket_file_follows_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l4.sock");
    let with = |mode: &str| config(json!({"a": echo(&format!("unix/{}|{mode}", path.display()))}));
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    let conncept = Conncept::serving(&with("0600"));
    assert_eq!(mode(), 0o600);
    let mut client = UnixStream::connect(&path).unwrap();
    assert_eq!(conncept.reload(&with("0622").to_string()), Reload::Done);
    assert_eq!(mode(), 0o622);
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

#[test]
fn port_0_keeps_its_port_across_reloads() {
    let ip = loopback();
    let with = |text: &str| config(json!({"a": responder(&format!("{ip}:0"), text)}));
    let conncept = Conncept::serving(&with("old"));
    let address = conncept.listening()[0];
    assert_eq!(conncept.reload(&with("new").to_string()), Reload::Done);
    assert_eq!(ask(address, b""), "new");
}

#[test]
fn drain_timeout_of_the_old_configuration_ends_its_connections() {
    let ip = loopback();
    let with = |timeout: Value| {
        let mut settings = config(json!({"a": echo(&format!("{ip}:80"))}));
        settings["apps"]["layer4"]["drain_timeout"] = timeout;
        settings.to_string()
    };
    let first: Value = serde_json::from_str(&with(json!("300ms"))).unwrap();
    let conncept = Conncept::serving(&first);
    let mut old = connect((ip, 80));
    echoes(&mut old, b"x");
    assert_eq!(conncept.reload(&with(json!("1h"))), Reload::Done);
    let mut new = connect((ip, 80));
    let from = old.local_addr().unwrap();
    echoes(&mut old, b"for a moment");
    assert_eq!(drain(&mut old), b"");
    assert_eq!(conncept.record_of(from)["reason"], "drained");
    echoes(&mut new, b"not this one");
    assert_eq!(conncept.reload(&with(json!("1s"))), Reload::Done);
    echoes(&mut new, b"under an hour");
}

#[test]
fn stopping_waits_for_connections_of_replaced_configurations_too() {
    let ip = loopback();
    let mut settings = config(json!({"a": echo(&format!("{ip}:80"))}));
    settings["apps"]["layer4"]["grace_period"] = json!("60s");
    let mut conncept = Conncept::serving(&settings);
    let mut old = connect((ip, 80));
    echoes(&mut old, b"x");
    settings["apps"]["layer4"]["servers"]["a"] = responder(&format!("{ip}:80"), "new");
    assert_eq!(conncept.reload(&settings.to_string()), Reload::Done);
    conncept.signal(Signal::TERM);
    assert_eq!(
        conncept.logged("waiting for connections to end")["connections"],
        1
    );
    echoes(&mut old, b"in the grace period");
    drop(old);
    assert_eq!(conncept.wait().code(), Some(0));
    assert_eq!(conncept.records()[0]["reason"], "completed");
}

#[test]
fn a_signal_loads_an_unchanged_file_again() {
    let ip = loopback();
    let settings = config(json!({"a": responder(&format!("{ip}:80"), "{env.E2E_UNSET}same")}));
    let conncept = Conncept::serving(&settings);
    assert_eq!(conncept.reload_unwritten(), Reload::Done);
    assert_eq!(ask((ip, 80), b""), "same");
}

#[test]
fn watching_does_not_load_a_file_that_is_being_written() {
    const AT_ONCE: Duration = Duration::from_millis(100);
    let ip = loopback();
    let with = |text: &str| config(json!({"a": responder(&format!("{ip}:80"), text)})).to_string();
    let conncept = Conncept::serving_with(&serde_json::from_str(&with("0")).unwrap(), &["--watch"]);
    for attempt in 1.. {
        let before = conncept.log_count();
        let text = attempt.to_string();
        let mut file = fs::File::create(conncept.config_file()).unwrap();
        let mut longest = Duration::ZERO;
        // Longer than from one look at the file to the next.
        let (first, whole) = (Instant::now(), with(&text));
        for piece in whole.as_bytes().chunks(1) {
            let written = Instant::now();
            file.write_all(piece).unwrap();
            pause(Duration::from_millis(10));
            longest = longest.max(written.elapsed());
        }
        assert!(first.elapsed() > Duration::from_secs(1));
        let outcome = conncept.reloaded_after(before);
        // On a machine that was busy with something else, the file really did stay the same for a while.
        if longest < AT_ONCE {
            assert_eq!(outcome, Reload::Done);
            assert_eq!(ask((ip, 80), b""), text);
            return;
        }
        eventually("the whole file is served", || ask((ip, 80), b"") == text);
    }
}

#[test]
fn watching_follows_the_file_over_broken_and_missing_versions() {
    let ip = loopback();
    let with = |text: &str| config(json!({"a": responder(&format!("{ip}:80"), text)}));
    let conncept = Conncept::serving_with(&with("one"), &["--watch"]);
    let file = conncept.config_file();

    let before = conncept.log_count();
    fs::write(&file, with("two").to_string()).unwrap();
    assert_eq!(conncept.reloaded_after(before), Reload::Done);
    assert_eq!(ask((ip, 80), b""), "two");

    let before = conncept.log_count();
    fs::write(&file, "{\"apps\": ").unwrap();
    assert_eq!(conncept.reloaded_after(before), Reload::Refused);
    fs::remove_file(&file).unwrap();
    let before = conncept.log_count();
    assert_eq!(conncept.reloaded_after(before), Reload::Refused);
    let complaints = || {
        conncept
            .logs()
            .iter()
            .filter(|line| line["level"] == "error")
            .count()
    };
    let so_far = complaints();
    // Two more looks at what is still missing.
    pause(Duration::from_millis(2500));
    assert_eq!(complaints(), so_far, "the same complaint every second");
    assert_eq!(ask((ip, 80), b""), "two");

    // Same meaning in another layout: seen, and nothing done.
    let before = conncept.log_count();
    fs::write(&file, format!("{:#}\n", with("two"))).unwrap();
    assert_eq!(conncept.reloaded_after(before), Reload::Unchanged);

    // Replaced by renaming, as editors do.
    let before = conncept.log_count();
    let next = conncept.dir().join("next");
    fs::write(&next, with("three").to_string()).unwrap();
    fs::rename(&next, &file).unwrap();
    assert_eq!(conncept.reloaded_after(before), Reload::Done);
    assert_eq!(ask((ip, 80), b""), "three");
}

#[test]
fn watching_gets_a_port_once_it_is_free_and_complains_once() {
    let ip = loopback();
    let taken = TcpListener::bind((ip, 443)).unwrap();
    let conncept = Conncept::serving_with(
        &config(json!({"a": responder(&format!("{ip}:80"), "one")})),
        &["--watch"],
    );
    let before = conncept.log_count();
    let mut both = config(json!({
        "a": responder(&format!("{ip}:80"), "two"),
        "b": responder(&format!("{ip}:443"), "free now"),
    }));
    // Something to warn of, which is said once as well.
    let routes = &mut both["apps"]["layer4"]["servers"]["a"]["routes"];
    let never = routes[0].clone();
    routes.as_array_mut().unwrap().push(never);
    fs::write(conncept.config_file(), both.to_string()).unwrap();
    assert_eq!(conncept.reloaded_after(before), Reload::Refused);
    conncept.logged("configuration warning");
    let said = conncept.log_count();
    // Long enough for one more try.
    pause(Duration::from_millis(2500));
    assert_eq!(conncept.log_count(), said, "{:?}", conncept.logs());
    assert_eq!(ask((ip, 80), b""), "one");
    drop(taken);
    assert_eq!(conncept.reloaded_after(said), Reload::Done);
    assert_eq!(ask((ip, 80), b""), "two");
    assert_eq!(ask((ip, 443), b""), "free now");
}

/// What the clients of the test below have seen.
#[derive(Default)]
struct Tally {
    good: AtomicU64,
    bad: AtomicU64,
    stop: AtomicBool,
}

impl Tally {
    /// Repeats `attempt` until told to stop.
    fn count(&self, mut attempt: impl FnMut() -> std::io::Result<bool>) {
        while !self.stop.load(Ordering::Relaxed) {
            match attempt() {
                Ok(true) => self.good.fetch_add(1, Ordering::Relaxed),
                other => {
                    eprintln!("a client was not served: {other:?}");
                    self.bad.fetch_add(1, Ordering::Relaxed)
                }
            };
        }
    }
}

#[test]
fn two_hundred_reloads_under_load_refuse_and_break_nothing() {
    const RELOADS: usize = 200;
    let ip = loopback();
    let taken = TcpListener::bind((ip, 443)).unwrap();
    let tcp: SocketAddr = (ip, 80).into();
    let udp: SocketAddr = (ip, 53).into();
    let kept: SocketAddr = (ip, 54).into();
    let servers = || {
        let mut servers = json!({"tcp": echo(&tcp.to_string()), "udp": echo(&format!("udp/{udp}")), "kept": echo(&format!("udp/{kept}"))});
        // So that the sessions of the load are over soon after it.
        servers["udp"]["idle_timeout"] = json!("2s");
        servers
    };
    let good = |i: usize| {
        let mut servers = servers();
        servers["other"] = responder(&format!("{ip}:{}", 1000 + i), &i.to_string());
        config(servers).to_string()
    };
    let bad = |i: usize| match i % 3 {
        0 => "{\"apps\": {".to_owned(),
        1 => {
            let mut servers = servers();
            servers["other"] = json!({"listen": [format!("{ip}:{}", 1000 + i)], "routes": [{"handle": [{"handler": "nope"}]}]});
            config(servers).to_string()
        }
        _ => {
            let mut servers = servers();
            servers["free"] = responder(&format!("{ip}:{}", 1000 + i), "");
            servers["taken"] = responder(&format!("{ip}:443"), "");
            config(servers).to_string()
        }
    };

    let conncept = Conncept::serving(&serde_json::from_str(&good(0)).unwrap());
    let mut keeper = connect(tcp);
    let session = datagrams(kept);
    echoes(&mut keeper, b"keeper");
    exchange(&session, b"keeper");
    // How many tasks there are when one more load is through.
    let tasks = || {
        assert_eq!(conncept.reload_unwritten(), Reload::Done);
        let logs = conncept.logs();
        let mut loads = logs.iter().rev().filter_map(|line| line["tasks"].as_u64());
        loads.next().unwrap()
    };
    // Whatever a first load leaves behind for all later ones is there now. Tasks of the load before may still be ending.
    let before = (0..5).map(|_| tasks()).min().unwrap();
    let (descriptors, threads) = (conncept.descriptors(), conncept.threads());

    let tally = Arc::new(Tally::default());
    let mut clients = Vec::new();
    for _ in 0..3 {
        let tally = tally.clone();
        clients.push(thread::spawn(move || {
            tally.count(|| Ok(try_ask(tcp, b"a connection")? == "a connection"));
        }));
    }
    for _ in 0..2 {
        let tally = tally.clone();
        clients.push(thread::spawn(move || {
            let lasting = datagrams(udp);
            tally.count(|| {
                let new = datagrams(udp);
                Ok(try_exchange(&lasting, b"a session")? == "a session"
                    && try_exchange(&new, b"another")? == "another")
            });
        }));
    }

    let mut current = 0;
    for i in 1..=RELOADS {
        if i % 3 == 0 {
            assert_eq!(conncept.reload(&bad(i)), Reload::Refused, "reload {i}");
        } else {
            assert_eq!(conncept.reload(&good(i)), Reload::Done, "reload {i}");
            current = i;
        }
        let other: SocketAddr = (ip, 1000 + u16::try_from(current).unwrap()).into();
        assert_eq!(ask(other, b""), current.to_string());
        if i % 10 == 0 {
            echoes(&mut keeper, b"keeper");
            assert_eq!(exchange(&session, b"keeper"), "keeper");
        }
    }
    tally.stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().unwrap();
    }
    let (good, bad) = (
        tally.good.load(Ordering::Relaxed),
        tally.bad.load(Ordering::Relaxed),
    );
    println!("{RELOADS} reloads, {good} exchanges, {bad} of them failed");
    assert_eq!(bad, 0, "of {good}");
    assert!(good > 1000, "hardly any load: {good}");

    // All that is left of two hundred configurations: the keepers and the sessions that are not idle yet.
    echoes(&mut keeper, b"to the end");
    assert_eq!(exchange(&session, b"to the end"), "to the end");
    eventually("descriptors are back to where they were", || {
        conncept.descriptors() == descriptors
    });
    eventually("threads are back to where they were", || {
        conncept.threads() <= threads
    });
    eventually("tasks are back to where they were", || tasks() <= before);
    drop(taken);
}
