//! Binaries with crates of others, made by `cargo xtask build` as its users make them. Needs cargo, and minutes when
//! nothing is built yet.

#![allow(clippy::unwrap_used)]
#![cfg(feature = "custom-builds")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use e2e::{Conncept, Finished};
use serde_json::{Value, json};
use tempfile::TempDir;

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.unwrap().to_owned()
}

/// Runs `cargo` in the checkout.
fn cargo(args: &[&str]) -> Finished {
    Finished::from(cargo_in(&root(), args).output().unwrap())
}

/// A call of `cargo` with the environment of a user and not that of this test.
fn cargo_in(directory: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(args).current_dir(directory);
    for (name, _) in std::env::vars() {
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "CARGO"
        {
            command.env_remove(name);
        }
    }
    command
}

/// One build at a time: they would only wait for each other's lock, and their times would mean nothing.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// `cargo xtask build` of a development build into `output`.
fn build(output: &Path, args: &[&str]) -> Finished {
    let output = output.to_str().unwrap();
    cargo(
        &[
            &["xtask", "build", "--profile", "dev", "--output", output],
            args,
        ]
        .concat(),
    )
}

fn built(output: &Path, args: &[&str]) -> Finished {
    let finished = build(output, args);
    assert_eq!(finished.code, Some(0), "{args:?}: {}", finished.stderr);
    assert!(output.is_file());
    finished
}

/// Builds what cannot be, and returns what was said. Nothing must be at the output.
fn refused(args: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let finished = build(&dir.path().join("conncept"), args);
    assert_eq!(finished.code, Some(1), "{args:?}: {}", finished.stderr);
    assert_eq!(
        fs::read_dir(&dir).unwrap().count(),
        0,
        "{args:?} left something"
    );
    finished.stderr
}

/// A crate with this library, beside the module API and nothing else.
fn crate_with(dir: &TempDir, name: &str, dependencies: &str, library: &str) -> String {
    let path = dir.path().join(name);
    fs::create_dir_all(path.join("src")).unwrap();
    let manifest = format!(
        "[package]\nname = {name:?}\nversion = \"0.1.0\"\nedition = \"2024\"\nlicense = \"GPL-3.0-or-later\"\n\
         [workspace]\n[dependencies]\n{dependencies}\n"
    );
    fs::write(path.join("Cargo.toml"), manifest).unwrap();
    fs::write(path.join("src/lib.rs"), library).unwrap();
    format!("{name}={}", path.display())
}

/// Runs `program` with the configuration `text` on a socket of its own and returns the answer to `bytes`.
fn answer(program: &Path, text: &str, listen: &str, bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let mut config: Value = serde_json::from_str(text).unwrap();
    let servers = config["apps"]["layer4"]["servers"].as_object_mut().unwrap();
    for server in servers.values_mut() {
        assert_eq!(server["listen"], json!([listen]));
        server["listen"] = json!([format!("unix/{}", socket.display())]);
    }
    let _conncept = Conncept::serving_from(program, &config);
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(e2e::PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn listed(program: &Path) -> String {
    let output = Command::new(program)
        .args(["list-modules", "--packages", "--versions"])
        .output();
    Finished::from(output.unwrap()).stdout
}

const SOUND: &str = "
    use l4_core::prelude::*;
    pub struct Nothing;
    #[derive(serde::Deserialize, schemars::JsonSchema)]
    pub struct Config {}
    impl MatcherModule for Nothing {
        const NAME: &'static str = \"nothing\";
        type Config = Config;
        fn provision(_: Config, _: &mut Provision<'_>) -> Result<Self, Rejected> { Ok(Self) }
    }
    impl Matcher for Nothing {
        fn matches(&self, _: &mut View<'_>) -> Verdict { Verdict::No }
    }
    pub fn register(reg: &mut Registry) { reg.matcher::<Nothing>(); }
";

const DEPENDENCIES: &str =
    "l4-core = \"0.1\"\nschemars = \"1.2\"\nserde = { version = \"1.0\", features = [\"derive\"] }";

#[test]
fn the_example_crate_is_built_in_and_routes_a_connection_and_building_again_is_quick() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("conncept");
    let example = root().join("examples/l4-hello");
    let with = format!("none,l4-hello={}", example.display());
    let said = built(&program, &["--with", &with]).stderr;
    assert!(said.contains("crates: l4-hello 0.1.0"), "{said}");
    assert!(said.contains("licence: MIT OR Apache-2.0\n"), "{said}");
    let modules = listed(&program);
    assert!(
        modules.contains("layer4.handlers.hello l4-hello v0.1.0\n"),
        "{modules}"
    );
    assert!(!modules.contains("proxy"), "{modules}");

    let config = fs::read_to_string(example.join("l4.json")).unwrap();
    let hello = answer(&program, &config, "127.0.0.1:7000", b"HELLO alice\r\nping");
    assert_eq!(hello, "Hello alice\r\nping");

    let started = Instant::now();
    built(&program, &["--with", &with]);
    // 5 s on an idle machine; compiling anything takes longer than this.
    assert!(
        started.elapsed() < Duration::from_secs(15),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn a_new_module_is_tested_and_built_in_as_it_stands() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let module = dir.path().join("l4-gopher");
    let module = module.to_str().unwrap();
    let made = cargo(&["xtask", "new-module", module]);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let again = cargo(&["xtask", "new-module", module]);
    assert_eq!(again.code, Some(1));
    assert!(
        again
            .stderr
            .contains("exists already; name a directory that does not"),
        "{}",
        again.stderr
    );

    let tests = cargo(&["test", "--manifest-path", &format!("{module}/Cargo.toml")]);
    assert_eq!(tests.code, Some(0), "{}{}", tests.stdout, tests.stderr);
    let program = dir.path().join("conncept");
    built(&program, &["--with", &format!("none,l4-gopher={module}")]);
    assert!(listed(&program).contains("layer4.matchers.gopher l4-gopher v0.1.0\n"));
    let config = fs::read_to_string(Path::new(module).join("l4.json")).unwrap();
    let hello = answer(&program, &config, "127.0.0.1:7000", b"HELLO bob\r\n");
    assert_eq!(hello, "who are you?\r\n");
}

/// The files of a page: a block behind a line that ends with its name in code.
fn files_of(page: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut name = None;
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("```") {
            let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            if let Some(name) = name.take() {
                files.push((name, body.join("\n") + "\n"));
            }
        } else if !line.is_empty() {
            let file = line
                .strip_prefix('`')
                .and_then(|line| line.strip_suffix("`:"));
            name = file.map(str::to_owned);
        }
    }
    files
}

#[test]
fn the_code_of_the_page_about_modules_works() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let page = fs::read_to_string(root().join("docs/writing-modules.md")).unwrap();
    let files = files_of(&page);
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        ["Cargo.toml", "src/lib.rs", "tests/ping.rs", "l4.json"]
    );
    for (name, text) in &files {
        let path = dir.path().join("l4-ping").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(
            path,
            text.replace("/path/to/conncept", root().to_str().unwrap()),
        )
        .unwrap();
    }
    let module = dir.path().join("l4-ping");
    fs::copy(root().join("Cargo.lock"), module.join("Cargo.lock")).unwrap();
    let manifest = module.join("Cargo.toml");
    let tests = cargo(&["test", "--manifest-path", manifest.to_str().unwrap()]);
    assert_eq!(tests.code, Some(0), "{}{}", tests.stdout, tests.stderr);

    let program = dir.path().join("conncept");
    built(
        &program,
        &["--with", &format!("none,l4-ping={}", module.display())],
    );
    let (_, config) = files.last().unwrap();
    assert_eq!(
        answer(&program, config, "127.0.0.1:7000", b"ping\nand more"),
        "pong\nand more"
    );

    // As the page says of mistakes.
    for (wrong, said) in [
        ("\"answr\"", "answer"),
        ("\"answer\": \"\", \"x\"", "unknown field"),
    ] {
        let file = dir.path().join("wrong.json");
        fs::write(&file, config.replace("\"answer\"", wrong)).unwrap();
        let output = Command::new(&program)
            .args(["validate", "--config"])
            .arg(file)
            .output();
        let finished = Finished::from(output.unwrap());
        assert_eq!(finished.code, Some(1));
        assert!(finished.stderr.contains(said), "{}", finished.stderr);
    }
}

#[test]
fn a_crate_from_a_repository_is_built_in_and_its_licence_is_said() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    crate_with(&dir, "l4-git", DEPENDENCIES, SOUND);
    let repository = dir.path().join("l4-git");
    for args in [
        &["init", "--quiet", "--initial-branch", "main"][..],
        &["add", "."],
        &[
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@example.com",
            "commit",
            "--quiet",
            "--message",
            "x",
        ],
        &["tag", "v1"],
    ] {
        let status = Command::new("git")
            .args(args)
            .current_dir(&repository)
            .status();
        assert!(status.unwrap().success());
    }
    let program = dir.path().join("conncept");
    let url = format!("file://{}", repository.display());
    let said = built(&program, &["--with", &format!("none,l4-git={url}@v1")]).stderr;
    assert!(
        said.contains("licence: GPL-3.0-or-later (because of l4-git v0.1.0)"),
        "{said}"
    );
    let version = Command::new(&program).arg("version").output();
    let version = Finished::from(version.unwrap()).stdout;
    assert!(
        version.ends_with(" (custom) GPL-3.0-or-later\n"),
        "{version}"
    );
    // Without `origin` in its code, a crate still is where its modules come from.
    assert!(listed(&program).contains("layer4.matchers.nothing l4-git v0.1.0\n"));

    let said = refused(&["--with", &format!("none,l4-git={url}@v2")]);
    assert!(said.contains("has no tag and no branch \"v2\""), "{said}");
}

#[test]
fn a_configuration_says_which_families_are_built_in() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("conncept");
    let file = dir.path().join("l4.json");
    let write = |handler: Value| {
        let routes = json!([{"match": [{"ssh": {}}, {"tls": {}}], "handle": [handler]}]);
        let server = json!({"listen": ["127.0.0.1:1"], "routes": routes});
        fs::write(&file, e2e::config(json!({"a": server})).to_string()).unwrap();
    };
    write(
        json!({"handler": "subroute", "routes": [{"match": [{"xmpp": {}}], "handle": [{"handler": "echo"}]}]}),
    );
    let from = file.to_str().unwrap();
    let said = built(&program, &["--from", from]).stderr;
    assert!(
        said.contains("module families: ssh, tls_matcher, xmpp\n"),
        "{said}"
    );
    let modules = listed(&program);
    for name in ["matchers.ssh", "matchers.tls", "matchers.xmpp"] {
        assert!(modules.contains(&format!("layer4.{name} ")), "{modules}");
    }
    for name in ["matchers.http", "handlers.tls"] {
        assert!(!modules.contains(&format!("layer4.{name} ")), "{modules}");
    }

    write(json!({"handler": "quantum"}));
    let said = refused(&["--from", from]);
    assert!(
        said.contains("layer4.handlers.quantum, which neither a module family nor a --with brings"),
        "{said}"
    );
}

/// A router by server name, and the answers of its two upstreams to a client.
fn routes_by_server_name(program: &Path) {
    let (first, last) = (e2e::Backend::banner("first"), e2e::Backend::banner("last"));
    let route = |name: &str, upstream: &e2e::Backend| {
        json!({
            "match": [{"tls": {"sni": [name]}}],
            "handle": [{"handler": "proxy", "upstreams": [{"dial": [upstream.address.to_string()]}]}],
        })
    };
    let routes = [route("a.example", &first), route("*.b.example", &last)];
    let config = e2e::config(json!({"a": {"listen": ["127.0.0.1:1"], "routes": routes}}));
    for (name, banner) in [("a.example", "first"), ("www.b.example", "last")] {
        let hello = e2e::client_hello(name, &["h2"]);
        let answer = answer(program, &config.to_string(), "127.0.0.1:1", &hello);
        assert_eq!(answer, banner, "{name}");
    }
}

/// What `tiny` may take at most, stripped.
const TINY_BYTES: u64 = 5 << 19;

#[test]
fn a_tiny_build_is_small_routes_by_server_name_and_says_what_adds_the_rest() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("conncept");
    let output = program.to_str().unwrap();
    // With the profile that it has by itself: what is measured is what users get.
    let finished = cargo(&["xtask", "build", "--with", "tiny", "--output", output]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let said = finished.stderr;
    assert!(said.contains("module families: tiny\n"), "{said}");
    let size = fs::metadata(&program).unwrap().len();
    assert!(size <= TINY_BYTES, "{size} bytes");
    routes_by_server_name(&program);

    let handle = |handler: Value| json!({"handle": [handler]});
    let proxy = |more: Value| {
        let mut handler = json!({"handler": "proxy", "upstreams": [{"dial": ["127.0.0.1:1"]}]});
        let members = handler.as_object_mut().unwrap();
        members.extend(more.as_object().unwrap().clone());
        handle(handler)
    };
    let matched = |matcher: Value| json!({"match": [matcher], "handle": [{"handler": "close"}]});
    let layer4 = |route: Value| json!({"apps": {"layer4": {"servers": {"a": {"listen": ["127.0.0.1:1"], "routes": [route]}}}}});
    let file = dir.path().join("l4.json");
    for (config, id, families) in [
        (
            layer4(handle(json!({"handler": "tls"}))),
            "layer4.handlers.tls",
            "tiny,tls",
        ),
        (
            layer4(matched(json!({"regexp": {"pattern": "^a"}}))),
            "layer4.matchers.regexp",
            "tiny,regexp",
        ),
        (
            layer4(matched(json!({"not": [{"vars_regexp": {}}]}))),
            "layer4.matchers.vars_regexp",
            "tiny,regexp",
        ),
        (
            layer4(matched(json!({"tls": {"sni_regexp": {"pattern": "a"}}}))),
            "tls.handshake_match.sni_regexp",
            "tiny,regexp",
        ),
        (
            layer4(matched(json!({"tls": {"sni": ["b\u{fc}cher.example"]}}))),
            "\"b\u{fc}cher.example\" is not ASCII",
            "tiny,idna",
        ),
        (
            layer4(matched(json!({"clock": {}}))),
            "layer4.matchers.clock",
            "tiny,clock",
        ),
        (
            // What is asked of a request needs the matcher around it.
            layer4(matched(json!({"http": [{"host": ["a"]}]}))),
            "layer4.matchers.http",
            "tiny,http",
        ),
        (
            layer4(proxy(json!({"proxy_protocol": "v2"}))),
            "layer4.proxy.preambles.v2",
            "tiny,proxy_protocol",
        ),
        (
            layer4(proxy(
                json!({"upstreams": [{"dial": ["127.0.0.1:1"], "tls": {"ca": {"provider": "system"}}}]}),
            )),
            "layer4.proxy.transports.tls",
            "tiny,tls",
        ),
        (
            json!({"apps": {"tls": {"automation": {"policies": [{"issuers": [{"module": "internal"}]}]}}}}),
            "tls",
            "tiny,tls",
        ),
        (json!({"apps": {"pki": {}}}), "pki", "tiny,tls"),
        (
            json!({"storage": {"module": "file_system"}, "apps": {}}),
            "caddy.storage.file_system",
            "tiny,tls",
        ),
    ] {
        fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new(&program);
        command.args(["validate", "--config"]).arg(&file);
        let finished = Finished::from(command.output().unwrap());
        assert_eq!(finished.code, Some(1), "{config}: {}", finished.stderr);
        let what = match id.contains(' ') {
            true => format!("error: {id}\n"),
            false => format!("unknown module: {id}\n"),
        };
        for part in [what, format!("cargo xtask build --with {families}\n")] {
            assert!(
                finished.stderr.contains(&part),
                "{part}: {}",
                finished.stderr
            );
        }
    }

    // Which way upstreams are chosen is part of the proxy.
    let selection = json!({"load_balancing": {"selection": {"policy": "ip_hash"}}});
    fs::write(&file, layer4(proxy(selection)).to_string()).unwrap();
    let mut command = Command::new(&program);
    command.args(["validate", "--config"]).arg(&file);
    let finished = Finished::from(command.output().unwrap());
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
}

/// Whether the kernel would have to load somebody to load libraries: a program header of the kind PT_INTERP (System V ABI,
/// chapter 5), in a 64-bit little-endian ELF file.
fn asks_for_a_loader(elf: &[u8]) -> bool {
    let number = |at: usize, size: usize| {
        let bytes = elf[at..at + size].iter().rev();
        bytes.fold(0, |value, byte| value << 8 | usize::from(*byte))
    };
    assert_eq!(elf[..6], *b"\x7fELF\x02\x01");
    let (first, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).any(|header| number(first + header * size, 4) == 3)
}

#[test]
fn a_static_build_loads_no_library_and_routes_by_server_name() {
    let _alone = alone();
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let library = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", &target])
        .output()
        .unwrap();
    if !Path::new(Finished::from(library).stdout.trim()).is_dir() {
        eprintln!("nothing was tested: rustup target add {target}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("conncept");
    let said = built(&program, &["--with", "tiny", "--target", &target]).stderr;
    // It was asked, as it runs here.
    assert!(said.contains(" modules, "), "{said}");
    assert!(!asks_for_a_loader(&fs::read(&program).unwrap()));
    assert!(asks_for_a_loader(&fs::read(e2e::program()).unwrap()));
    routes_by_server_name(&program);
}

#[test]
fn crates_that_cannot_be_built_in_are_refused_with_a_remedy_and_nothing_is_written() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let case = |name: &str, dependencies: &str, library: &str| {
        format!("none,{}", crate_with(&dir, name, dependencies, library))
    };
    let without = case("l4-without", DEPENDENCIES, "pub fn enter() {}");
    let said = refused(&["--with", &without]);
    assert!(
        said.contains("l4-without has no function that registers its modules"),
        "{said}"
    );
    assert!(
        said.contains("pub fn register(reg: &mut l4_core::Registry) {"),
        "{said}"
    );

    let broken = case("l4-broken", DEPENDENCIES, "pub fn register(");
    let said = refused(&["--with", &broken]);
    assert!(
        said.contains("the crate l4_broken does not compile: see above"),
        "{said}"
    );

    let idle = case(
        "l4-idle",
        DEPENDENCIES,
        "pub fn register(_: &mut l4_core::Registry) {}",
    );
    let said = refused(&["--with", &idle]);
    assert!(
        said.contains("l4-idle is built in but brings no module"),
        "{said}"
    );

    let old = case("l4-old", "l4-core = \"0.3\"", SOUND);
    let said = refused(&["--offline", "--with", &old]);
    assert!(
        said.contains("two versions of l4-core: l4-old v0.1.0"),
        "{said}"
    );
    assert!(said.contains("this checkout has 0.1.0"), "{said}");

    let copy = case("copy/l4-core", "", "");
    let manifest = dir.path().join("copy/l4-core/Cargo.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("copy/l4-core", "l4-core")).unwrap();
    let (_, path) = copy.split_once('=').unwrap();
    let other = case("l4-other", &format!("l4-core = {{ path = {path:?} }}"), "");
    let said = refused(&["--offline", "--with", &other]);
    let wants = format!("two versions of l4-core: l4-other wants the one in {path}");
    assert!(said.contains(&wants), "{said}");

    // The same one crate further away, of one version with ours and of another.
    let (_, inner) = other.split_once('=').unwrap();
    let outer = case(
        "l4-outer",
        &format!("l4-other = {{ path = {inner:?} }}"),
        "",
    );
    let said = refused(&["--offline", "--with", &outer]);
    assert!(
        said.contains("two versions of one crate: l4-core v0.1.0"),
        "{said}"
    );
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("0.1.0", "0.2.0")).unwrap();
    let said = refused(&["--offline", "--with", &outer]);
    assert!(
        said.contains("two versions of l4-core would be linked"),
        "{said}"
    );
    assert!(
        said.contains(&format!("0.2.0 from {path}, for l4-other 0.1.0")),
        "{said}"
    );

    let first = crate_with(&dir, "l4-first", DEPENDENCIES, SOUND);
    let second = crate_with(&dir, "l4-second", DEPENDENCIES, SOUND);
    let said = refused(&["--with", &format!("none,{first},{second}")]);
    assert!(
        said.contains("module layer4.matchers.nothing is registered twice"),
        "{said}"
    );
    assert!(said.contains("leave one of them out"), "{said}");

    for (args, remedy) in [
        (&["--with", "sssh"][..], "did you mean ssh?"),
        (
            &["--with", "l4-x=/no/such"],
            "does not exist; correct the path",
        ),
        (
            &["--offline", "--with", "conncept-no-such-crate"],
            "say where it is: --with conncept-no-such-crate=DIRECTORY",
        ),
        (
            &["--with", &first.replace("l4-first=", "l4-first+fast=")],
            "has no feature \"fast\"",
        ),
        (&["--with", "l4-core=/tmp"], "is part of this checkout"),
        (
            &["--replace", "l4-core=/tmp"],
            "is part of this checkout; change it here",
        ),
        (&["--replace", "rustls"], "write --replace rustls=SOURCE"),
        (&["--target", "quantum"], "rustc knows no target"),
        (&["--lock", "/no/such"], "cannot read /no/such"),
    ] {
        let said = refused(args);
        assert!(said.contains(remedy), "{args:?}: {said}");
    }
}

/// A module for namespaces of three crates.
const SPACES: &str = "
    use l4_core::prelude::*;
    use l4_http::request_match::{Request, RequestMatch, RequestMatchers};
    use l4_proxy::policy::{INLINE_KEY, Select, SelectionPolicies};
    use l4_proxy::upstream::Upstream;
    use l4_tls::{ClientHello, HandshakeMatch, HandshakeMatchers, HandshakeScope};

    #[derive(serde::Deserialize, schemars::JsonSchema)]
    pub struct Config {}

    /// Chooses the last upstream that is available.
    struct Last;
    impl Select for Last {
        fn select(&self, upstreams: &[Upstream], conn: &Connection) -> Option<usize> {
            upstreams.iter().rposition(|upstream| upstream.available(conn))
        }
    }

    struct Named;
    impl HandshakeMatch for Named {
        fn matches(&self, hello: &ClientHello, _: &dyn HandshakeScope, _: &mut Vec<Capture>) -> bool {
            hello.server_name().is_some()
        }
    }

    struct Any;
    impl RequestMatch for Any {
        fn matches(&self, _: &mut Request<'_, '_>) -> bool { true }
    }

    pub fn register(reg: &mut Registry) {
        reg.add_inline::<SelectionPolicies, Config>(\"last\", INLINE_KEY, |_, _| Ok(Box::new(Last)));
        reg.add::<HandshakeMatchers, Config>(\"named\", |_, _| Ok(Box::new(Named)));
        reg.add::<RequestMatchers, Config>(\"any\", |_, _| Ok(Box::new(Any)));
    }
";

#[test]
fn namespaces_of_policies_and_of_conditions_are_open_to_other_crates() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let dependencies =
        format!("{DEPENDENCIES}\nl4-http = \"0.1\"\nl4-proxy = \"0.1\"\nl4-tls = \"0.1\"");
    let module = crate_with(&dir, "l4-spaces", &dependencies, SPACES);
    let program = dir.path().join("conncept");
    built(&program, &["--with", &format!("proxy,http,tls,{module}")]);
    let modules = listed(&program);
    for id in [
        "layer4.proxy.selection_policies.last",
        "tls.handshake_match.named",
        "http.matchers.any",
    ] {
        assert!(
            modules.contains(&format!("{id} l4-spaces v0.1.0\n")),
            "{modules}"
        );
    }
    let (first, last) = (e2e::Backend::banner("first"), e2e::Backend::banner("last"));
    let upstreams = [first.address, last.address].map(|at| json!({"dial": [at.to_string()]}));
    let config = e2e::config(json!({"a": {"listen": ["127.0.0.1:1"], "routes": [{
        "match": [{"http": [{"any": {}}]}],
        "handle": [{"handler": "proxy", "upstreams": upstreams,
            "load_balancing": {"selection": {"policy": "last"}}}],
    }]}}));
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(
        answer(&program, &config.to_string(), "127.0.0.1:1", request),
        "last"
    );
}

#[test]
fn what_is_at_the_output_stays_when_a_build_is_refused() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let broken = crate_with(&dir, "l4-broken", DEPENDENCIES, "pub fn register(");
    let output = dir.path().join("bin/conncept");
    fs::create_dir(dir.path().join("bin")).unwrap();
    fs::write(&output, "of yesterday").unwrap();
    for (args, says) in [
        (format!("none,{broken}"), "does not compile"),
        (
            "tls,tls".to_owned(),
            "--with tls is given twice; remove one of them",
        ),
        (
            format!("{broken},{broken}"),
            "--with l4-broken is given twice; remove one of them",
        ),
    ] {
        let finished = build(&output, &["--with", &args]);
        assert_eq!(finished.code, Some(1), "{args}: {}", finished.stderr);
        assert!(
            finished.stderr.contains(says),
            "{args}: {}",
            finished.stderr
        );
        assert_eq!(fs::read_to_string(&output).unwrap(), "of yesterday");
        assert_eq!(fs::read_dir(dir.path().join("bin")).unwrap().count(), 1);
    }
    for (output, says) in [
        ("bin", "is a directory; --output names the binary itself"),
        ("none/conncept", "choose another place with --output"),
        // Not even root can write below a file.
        (
            "bin/conncept/conncept",
            "choose another place with --output",
        ),
    ] {
        let finished = build(&dir.path().join(output), &["--with", "none"]);
        assert_eq!(finished.code, Some(1), "{output}: {}", finished.stderr);
        assert!(
            finished.stderr.contains(says),
            "{output}: {}",
            finished.stderr
        );
        // Refused before minutes are spent.
        assert!(
            !finished.stderr.contains("$ cargo build"),
            "{}",
            finished.stderr
        );
    }
    assert_eq!(fs::read_to_string(&output).unwrap(), "of yesterday");
}

/// Needs setcap and getcap, which are installed where these tests run (Debian: libcap2-bin), and root or sudo.
#[test]
fn a_binary_may_be_allowed_to_listen_on_low_ports() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("conncept");
    let getcap = |what: &str| {
        let output = Command::new("sh")
            .args([
                "-c",
                "PATH=$PATH:/usr/sbin:/sbin; getcap \"$0\"",
                program.to_str().unwrap(),
            ])
            .output();
        let finished = Finished::from(output.unwrap());
        assert_eq!(finished.code, Some(0), "{what}: {}", finished.stderr);
        finished.stdout
    };
    built(&program, &["--with", "none"]);
    assert_eq!(getcap("without"), "");
    let said = built(&program, &["--with", "none", "--setcap"]).stderr;
    assert!(said.contains("setcap cap_net_bind_service=+ep"), "{said}");
    let has = getcap("with");
    assert!(has.contains("cap_net_bind_service"), "{has}");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);

    let said = refused(&["--setcap", "--target", "x86_64-pc-windows-gnu"]);
    assert!(
        said.contains("on Linux only; leave --setcap out") || said.contains("rustup target add"),
        "{said}"
    );
}

#[test]
fn a_module_is_run_from_its_own_folder_with_its_patches_its_exit_code_and_signals() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let module = dir.path().join("l4-gopher");
    let made = cargo(&["xtask", "new-module", module.to_str().unwrap()]);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    // A dependency that only the patch of this crate makes known, by a relative path.
    let _ = crate_with(
        &dir,
        "no-such-helper-of-l4-gopher",
        "",
        "pub const HELP: u8 = 1;",
    );
    let manifest = module.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    let text = text.replacen(
        "[dependencies]\n",
        "[dependencies]\nno-such-helper-of-l4-gopher = \"0.1\"\n",
        1,
    );
    let patch =
        "no-such-helper-of-l4-gopher = { path = \"../no-such-helper-of-l4-gopher\" } # ours\n";
    fs::write(&manifest, text + patch).unwrap();
    let names = |directory: &Path| {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let (before, beside) = (names(&module), names(dir.path()));

    let run = |arguments: &[&str]| {
        let args = [&["xtask", "run", "--with", "none", "--"], arguments].concat();
        // From a folder in it as well: that of the crate is looked for.
        cargo_in(&module.join("src"), &args)
    };
    let finished = Finished::from(run(&["list-modules"]).output().unwrap());
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(
        finished.stdout.contains("layer4.matchers.gopher"),
        "{}",
        finished.stdout
    );
    // Nothing of the build is on standard output.
    assert!(!finished.stdout.contains("cargo"), "{}", finished.stdout);
    let finished = Finished::from(
        run(&["validate", "--config", "none.json"])
            .output()
            .unwrap(),
    );
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    assert!(finished.stderr.contains("none.json"), "{}", finished.stderr);

    let config = fs::read_to_string(module.join("l4.json")).unwrap();
    let socket = format!("unix/{}", dir.path().join("socket").display());
    fs::write(
        dir.path().join("run.json"),
        config.replace("127.0.0.1:7000", &socket),
    )
    .unwrap();
    let log = fs::File::create(dir.path().join("log")).unwrap();
    let mut running = run(&["run", "--config", "../../run.json"])
        .stderr(log)
        .spawn()
        .unwrap();
    let started = Instant::now();
    let mut stream = loop {
        match UnixStream::connect(dir.path().join("socket")) {
            Ok(stream) => break stream,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(60), "{error}"),
        }
        assert_eq!(running.try_wait().unwrap(), None);
        e2e::pause(Duration::from_millis(20));
    };
    stream.write_all(b"HELLO bob\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "who are you?\r\n");
    // To the process that was started: the program is that process by now.
    let process = rustix::process::Pid::from_child(&running);
    rustix::process::kill_process(process, e2e::Signal::TERM).unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(0));
    let log = fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(log.contains("shutdown complete"), "{log}");

    for name in ["run.json", "log"] {
        fs::remove_file(dir.path().join(name)).unwrap();
    }
    assert_eq!((names(&module), names(dir.path())), (before, beside));
}

#[test]
fn running_a_module_wants_to_be_in_the_folder_of_one() {
    let dir = tempfile::tempdir().unwrap();
    let xtask = format!("{}/Cargo.toml", root().display());
    let run = |directory: &Path| {
        let args = [
            "run",
            "--quiet",
            "--manifest-path",
            &xtask,
            "--package",
            "xtask",
            "--",
            "run",
        ];
        let finished = Finished::from(cargo_in(directory, &args).output().unwrap());
        assert_eq!(finished.code, Some(1), "{}", finished.stderr);
        finished.stderr
    };
    let said = run(dir.path());
    assert!(
        said.contains("make one with: cargo xtask new-module DIR"),
        "{said}"
    );
    let said = run(&root().join("crates/l4-core"));
    assert!(said.contains("belongs to Conncept itself"), "{said}");
    fs::write(dir.path().join("Cargo.toml"), "[workspace]\nmembers = []\n").unwrap();
    let said = run(dir.path());
    assert!(
        said.contains("go to the folder of the crate with the modules"),
        "{said}"
    );
}

#[test]
fn the_tasks_say_their_version() {
    let finished = cargo(&["xtask", "version"]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let version = format!("conncept v{}", env!("CARGO_PKG_VERSION"));
    assert!(finished.stdout.starts_with(&version), "{}", finished.stdout);
    assert!(
        finished.stdout.contains("\nrustc 1."),
        "{}",
        finished.stdout
    );
}

#[test]
fn the_generated_crate_can_be_kept_and_built_by_hand() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let module = crate_with(&dir, "l4-kept", DEPENDENCIES, SOUND);
    let made = dir.path().join("made");
    let made = made.to_str().unwrap();
    let finished = cargo(&[
        "xtask",
        "build",
        "--with",
        &format!("none,{module}"),
        "--generate-only",
        made,
    ]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let manifest = format!("{made}/Cargo.toml");
    let checked = cargo(&["check", "--locked", "--manifest-path", &manifest]);
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);
    let occupied = dir.path().to_str().unwrap();
    let finished = cargo(&[
        "xtask",
        "build",
        "--with",
        &module,
        "--generate-only",
        occupied,
    ]);
    assert_eq!(finished.code, Some(1));
    assert!(
        finished
            .stderr
            .contains("is not empty; name a directory that is"),
        "{}",
        finished.stderr
    );
}
