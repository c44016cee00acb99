//! That nothing is left open or running. In a process of its own, because the descriptors are the process's.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use tempfile::TempDir;

use support::{app, listening, load, refusal};

/// Descriptors, and tasks of the runtime.
fn open() -> (usize, usize) {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let tasks = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    (descriptors, tasks)
}

/// Lets the tasks of closed listeners end.
async fn settled() -> (usize, usize) {
    let mut before = open();
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = open();
        if now == before {
            return now;
        }
        before = now;
    }
}

/// One test, so that nobody else opens files meanwhile.
#[tokio::test]
async fn loads_leave_no_descriptor_and_no_task_behind() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let all = |i: u32| -> Vec<String> {
        vec![
            "127.0.0.1:0".into(),
            "[::1]:0".into(),
            "udp/127.0.0.1:0".into(),
            format!("unix/{}", path(&format!("stream{i}"))),
            format!("unixgram/{}", path(&format!("datagrams{i}"))),
            format!("unixpacket/{}", path(&format!("packets{i}"))),
        ]
    };
    let at_first = settled().await;
    let (pool, _) = listening(&["127.0.0.1:0", "udp/127.0.0.1:0"]).await;
    let running = settled().await;
    assert!(running > at_first);

    // A load that fails at its last address.
    let mut listen = all(0);
    listen.push("fd/900000".into());
    let listen: Vec<&str> = listen.iter().map(String::as_str).collect();
    for _ in 0..20 {
        refusal(&pool, &[("two", &listen)]).await;
        assert_eq!(open(), running, "after a load that failed");
    }
    // One that is given up.
    for _ in 0..20 {
        let staged = pool.stage(&app(&[("two", &listen[..6])])).await;
        assert!(open() > running);
        drop(staged);
        assert_eq!(open(), running, "after a load that was given up");
    }
    assert_eq!(
        std::fs::read_dir(directory.path()).unwrap().count(),
        0,
        "socket files"
    );

    // Sockets that come and go.
    let mut afterwards = None;
    for i in 0..200 {
        let listen = all(i % 2);
        let listen: Vec<&str> = listen.iter().map(String::as_str).collect();
        load(&pool, &[("two", &listen)]).await;
        if i % 20 == 19 {
            let now = settled().await;
            assert_eq!(*afterwards.get_or_insert(now), now, "after {i} loads");
            assert_eq!(
                std::fs::read_dir(directory.path()).unwrap().count(),
                3,
                "socket files"
            );
        }
    }
    pool.close_all().await;
    assert_eq!(settled().await, at_first);
    assert_eq!(
        std::fs::read_dir(directory.path()).unwrap().count(),
        0,
        "socket files"
    );
}
