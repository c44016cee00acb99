//! What programs that are started get of our sockets.
//!
//! In a process of its own: between being forked and running its program a child has them all, and what clients meanwhile
//! give to one that we have closed is reset.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use support::listening;

#[tokio::test]
async fn sockets_are_not_inherited_by_programs_that_are_started() {
    let (_pool, _) = listening(&["127.0.0.1:0", "udp/127.0.0.1:0"]).await;
    let inode = |fd: &fs::DirEntry| fs::metadata(fd.path()).ok().map(|m| m.ino());
    let ours: Vec<_> = fs::read_dir("/proc/self/fd").unwrap().flatten().collect();
    let sockets: Vec<_> = ours
        .iter()
        .filter(|fd| {
            fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
        })
        .filter_map(inode)
        .collect();
    assert!(sockets.len() >= 2);
    let child = std::process::Command::new("ls")
        .args(["-lL", "-i", "/proc/self/fd"])
        .output()
        .unwrap();
    let seen = String::from_utf8_lossy(&child.stdout).into_owned();
    for socket in sockets {
        assert!(
            !seen
                .split_whitespace()
                .any(|word| word == socket.to_string()),
            "{seen}"
        );
    }
}
