//! A network of a test's own, for configurations whose addresses and ports are fixed.

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
