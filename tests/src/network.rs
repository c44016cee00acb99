//! A network of a test's own, for configurations whose addresses and ports are fixed.

use std::path::Path;
use std::process::Command;

/// Says to the child that it is the one that runs the test.
const INSIDE: &str = "E2E_INSIDE";

/// Whether to run the test: yes in a network namespace that has nothing but the loopback interface, with `addresses`
/// (such as `10.0.0.1/24`) beside its own. Outside of it, runs the test `name` of this program inside, and passes its
/// failure on. So every port of every address is free, and tests do not get into each other's way.
///
/// Without root this needs unprivileged user namespaces; `unshare` and `ip` (Debian's iproute2) always.
pub fn apart(name: &str, addresses: &[&str]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut script = "ip link set lo up".to_owned();
    for address in addresses {
        script += &format!(" && ip address add {address} dev lo");
    }
    script += r#" && exec "$0" --exact "$1" --nocapture"#;
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let output = command
        .args(["--net", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .arg(name)
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (said, complained) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}\n{complained}");
    assert!(said.contains("1 passed"), "there is no test {name}: {said}");
    false
}

/// Two commands that make another machine, for tests that are [`apart`]: the first one this machine's end of a cable
/// between them, with the address `ours`, the second one the machine with the address `theirs` and the command that
/// it runs, again until it succeeds. What goes through the cable passes through a socket in `dir`.
///
/// A tunnel made by socat rather than a pair of virtual interfaces, which not every kernel has.
pub fn machine(dir: &Path, ours: &str, theirs: &str, runs: &str) -> [Command; 2] {
    let cable = dir.join("cable");
    let cable = cable.display();
    let mut end = Command::new("socat");
    // Messages stay whole in a socket of type 5, SOCK_SEQPACKET.
    end.args([
        &format!("TUN:{ours}/24,up,iff-no-pi"),
        &format!("UNIX-LISTEN:{cable},socktype=5"),
    ]);
    // The shell ends when it is told to, and then the kernel ends what it has started.
    let bound = "setpriv --pdeathsig KILL";
    let mut machine = Command::new("unshare");
    machine.args(["--net", "sh", "-c"]);
    machine.arg(format!(
        "ip link set lo up
         {bound} socat TUN:{theirs}/24,up,iff-no-pi UNIX-CONNECT:{cable},socktype=5,retry=100,interval=0.1 &
         until {bound} {runs}; do sleep 0.1; done"
    ));
    [end, machine]
}
