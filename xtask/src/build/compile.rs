//! Compiling, and putting the binary where it is wanted: whole or not at all.

use std::io::{BufReader, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::Message;
use cargo_metadata::diagnostic::DiagnosticLevel;

use super::generated::{NAME, Registration};
use super::setcap::Setcap;
use crate::shell::{self, Said, rustc, shown};

/// Runs `cargo build` and returns the binary called `name`.
pub(crate) fn run(
    build: &mut Command,
    name: &str,
    registrations: &[Registration],
) -> Result<PathBuf> {
    eprintln!("$ {}", shown(build));
    build
        .arg(match std::io::stderr().is_terminal() {
            true => "--message-format=json-diagnostic-rendered-ansi",
            false => "--message-format=json",
        })
        .stdout(Stdio::piped());
    let mut child = build.spawn().context("cannot run cargo")?;
    let stdout = child
        .stdout
        .take()
        .context("cargo has no standard output")?;
    let mut binary = None;
    let mut broken: Vec<(String, String)> = Vec::new();
    for message in Message::parse_stream(BufReader::new(stdout)) {
        match message? {
            Message::CompilerArtifact(artifact) if artifact.target.name == name => {
                binary = artifact.executable.or(binary);
            }
            Message::CompilerMessage(said) => {
                eprint!("{}", said.message.rendered.unwrap_or_default());
                if said.message.level == DiagnosticLevel::Error {
                    broken.push((said.target.name, said.message.message));
                }
            }
            Message::TextLine(line) => eprintln!("{line}"),
            _ => {}
        }
    }
    let status = child.wait()?;
    match binary {
        Some(binary) if status.success() => Ok(binary.into_std_path_buf()),
        _ => bail!("{}", explain(&broken, registrations)),
    }
}

/// Why a build failed: the first crate with an error is the cause of all others.
fn explain(broken: &[(String, String)], registrations: &[Registration]) -> String {
    let Some((target, _)) = broken.first() else {
        return "cargo could not build it, for the reason above; nothing was written".to_owned();
    };
    if target != NAME {
        return format!(
            "the crate {target} does not compile: see above. Correct it, try with cargo check in its directory, and build \
             again; nothing was written"
        );
    }
    let faulty: Vec<&Registration> = registrations
        .iter()
        .filter(|registration| {
            let library = registration.function.split("::").next().unwrap_or_default();
            broken
                .iter()
                .any(|(_, message)| message.contains(&format!("`{library}`")))
        })
        .collect();
    let names: Vec<&str> = match faulty.as_slice() {
        [] => registrations
            .iter()
            .map(|registration| registration.package.as_str())
            .collect(),
        faulty => faulty
            .iter()
            .map(|registration| registration.package.as_str())
            .collect(),
    };
    let function = faulty
        .first()
        .or(registrations.first().as_ref())
        .and_then(|registration| registration.function.rsplit("::").next())
        .unwrap_or("register");
    format!(
        "{} has no function that registers its modules; nothing was written. It needs these three lines in src/lib.rs:\n\n\
         pub fn {function}(reg: &mut l4_core::Registry) {{\n    reg.matcher::<YourMatcher>().handler::<YourHandler>();\n}}",
        names.join(" or ")
    )
}

/// Refuses a target that the toolchain cannot build for.
pub(crate) fn check_target(target: &str) -> Result<()> {
    let said = shell::ask(rustc().args(["--print", "target-libdir", "--target", target]))?;
    if !said.success {
        bail!("rustc knows no target {target:?}; rustc --print target-list has them all");
    }
    if !Path::new(said.stdout.trim()).is_dir() {
        bail!(
            "the standard library for {target} is not installed; install it with: rustup target add {target}"
        );
    }
    Ok(())
}

/// Whether a binary for `target` runs here.
fn runs_here(target: Option<&str>) -> bool {
    let Some(target) = target else {
        return true;
    };
    let host = shell::ask(rustc().arg("-vV"))
        .map(|said| said.stdout)
        .unwrap_or_default();
    host.lines()
        .filter_map(|line| line.strip_prefix("host: "))
        .any(|host| host == target || is_static_twin(target, host))
}

/// Whether `target` is `host` without its C library: what is linked statically asks nothing of a system but its kernel.
fn is_static_twin(target: &str, host: &str) -> bool {
    match (target.strip_suffix("-musl"), host.strip_suffix("-gnu")) {
        (Some(target), Some(host)) => target == host,
        _ => false,
    }
}

/// Where the binary goes. What is written until then is removed when this is dropped.
pub(crate) struct Output {
    path: PathBuf,
    unfinished: PathBuf,
}

impl Output {
    /// Finds out before the build whether the binary can be written at all.
    pub(crate) fn prepare(output: Option<&Path>, target: Option<&str>) -> Result<Self> {
        let windows = target.unwrap_or(std::env::consts::OS).contains("windows");
        let default = if windows { "conncept.exe" } else { "conncept" };
        let path = std::path::absolute(output.unwrap_or(Path::new(default)))?;
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            bail!(
                "{} names no file; --output names the binary itself",
                path.display()
            );
        };
        if path.is_dir() {
            bail!(
                "{} is a directory; --output names the binary itself",
                path.display()
            );
        }
        // Written beside the output and moved, so that nobody ever finds half a binary there.
        let unfinished = directory.join(format!(
            ".{}.{}.unfinished",
            name.display(),
            std::process::id()
        ));
        let output = Self { path, unfinished };
        std::fs::write(&output.unfinished, b"").with_context(|| {
            format!(
                "cannot write {}; choose another place with --output",
                output.path.display()
            )
        })?;
        // Nothing is left behind if the build is interrupted.
        let _ = std::fs::remove_file(&output.unfinished);
        Ok(output)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Copies what was built beside the output, and asks it what it is if it runs here.
    pub(crate) fn take(
        &self,
        built: &Path,
        target: Option<&str>,
        config: Option<&Path>,
    ) -> Result<Binary> {
        std::fs::copy(built, &self.unfinished).with_context(|| {
            format!(
                "cannot write {}; choose another place with --output",
                self.path.display()
            )
        })?;
        match runs_here(target) {
            true => Binary::asked(&self.unfinished, config),
            false => Binary::unasked(&self.unfinished),
        }
    }

    /// Lets who is not root listen on ports below 1024 with the binary. Before it is at its place: no way to that state is
    /// a build that went half well.
    pub(crate) fn set_capability(&self, setcap: &Setcap) -> Result<()> {
        setcap
            .run(&self.unfinished)
            .with_context(|| format!("{} was not written", self.path.display()))
    }

    /// Moves the binary to its place.
    pub(crate) fn finish(&self, _: &Binary) -> Result<()> {
        std::fs::rename(&self.unfinished, &self.path).with_context(|| {
            format!(
                "cannot write {}; choose another place with --output",
                self.path.display()
            )
        })
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.unfinished);
    }
}

/// What was built. All but the size is unknown for another machine.
pub(crate) struct Binary {
    pub(crate) size: u64,
    pub(crate) modules: Option<usize>,
    pub(crate) version: Option<String>,
    /// What it says of its modules.
    listed: Option<Said>,
    /// What it says of the configuration that it was built from.
    pub(crate) validated: Option<Said>,
}

impl Binary {
    /// Asks the program what it is.
    pub(crate) fn asked(program: &Path, config: Option<&Path>) -> Result<Self> {
        let mut binary = Self::unasked(program)?;
        let ask = |args: &[&str]| shell::ask(Command::new(program).args(args));
        let listed = ask(&["list-modules", "--packages"])?;
        binary.modules = Some(
            listed
                .stdout
                .lines()
                .take_while(|line| !line.is_empty())
                .count(),
        );
        binary.version = Some(ask(&["version"])?.stdout.trim().to_owned());
        if listed.stdout.contains("Non-standard") {
            let (_, others) = listed.stdout.split_once("\n\n").unwrap_or_default();
            let others = others.lines().filter(|line| !line.starts_with(' '));
            binary.modules = binary
                .modules
                .map(|count| count + others.filter(|line| !line.is_empty()).count());
        }
        binary.listed = Some(listed);
        if let Some(config) = config {
            let file = config.display().to_string();
            binary.validated = Some(ask(&["validate", "--config", &file])?);
        }
        Ok(binary)
    }

    fn unasked(program: &Path) -> Result<Self> {
        Ok(Self {
            size: std::fs::metadata(program)?.len(),
            modules: None,
            version: None,
            listed: None,
            validated: None,
        })
    }

    /// Refuses a binary that does not start, and one in which a crate is that brought nothing.
    pub(crate) fn check(&self, registrations: &[Registration]) -> Result<()> {
        let Some(listed) = &self.listed else {
            return Ok(());
        };
        if !listed.success {
            bail!(
                "the binary was built but does not start, so it was not written: {}. If two crates have a module of one \
                 name, leave one of them out",
                listed.stderr.trim()
            );
        }
        for registration in registrations {
            let package = &registration.package;
            let brought = |line: &str| line.split(' ').nth(1) == Some(package);
            if !listed.stdout.lines().any(brought) {
                bail!(
                    "{package} is built in but brings no module: let {} enter at least one, with reg.matcher::<…>() or \
                     reg.handler::<…>()",
                    registration.function
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registrations() -> [Registration; 2] {
        ["a-l4", "b-l4"].map(|name| Registration {
            package: name.to_owned(),
            version: "1.0.0".to_owned(),
            function: format!("{}::register", name.replace('-', "_")),
        })
    }

    fn said(target: &str, message: &str) -> (String, String) {
        (target.to_owned(), message.to_owned())
    }

    #[test]
    fn a_crate_without_register_gets_the_three_lines() {
        let broken = [said(
            NAME,
            "cannot find function `register` in crate `b_l4`",
        )];
        let error = explain(&broken, &registrations());
        assert!(error.starts_with("b-l4 has no function"), "{error}");
        assert!(
            error.contains("pub fn register(reg: &mut l4_core::Registry) {\n"),
            "{error}"
        );
    }

    #[test]
    fn a_crate_that_does_not_compile_is_named() {
        let broken = [
            said("a_l4", "expected `;`"),
            said("b_l4", "mismatched types"),
        ];
        assert!(explain(&broken, &registrations()).starts_with("the crate a_l4 does not compile"));
        assert!(explain(&[], &registrations()).contains("nothing was written"));
    }

    #[test]
    fn an_output_that_cannot_be_written_is_refused_before_anything_is_built() {
        let dir = tempfile::tempdir().unwrap();
        let refused =
            |path: &Path| format!("{:#}", Output::prepare(Some(path), None).err().unwrap());
        assert!(refused(dir.path()).contains("is a directory; --output names the binary itself"));
        let error = refused(&dir.path().join("none/conncept"));
        assert!(
            error.contains("choose another place with --output"),
            "{error}"
        );
        let output = Output::prepare(
            Some(&dir.path().join("conncept")),
            Some("x86_64-pc-windows-gnu"),
        )
        .unwrap();
        assert_eq!(output.path().file_name().unwrap(), "conncept");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_static_binary_for_this_processor_runs_here() {
        let host = "x86_64-unknown-linux-gnu";
        assert!(is_static_twin("x86_64-unknown-linux-musl", host));
        assert!(!is_static_twin("aarch64-unknown-linux-musl", host));
        assert!(!is_static_twin("x86_64-pc-windows-gnu", host));
    }

    #[test]
    fn unknown_targets_are_refused_with_where_to_look() {
        let error = check_target("quantum").unwrap_err().to_string();
        assert!(
            error.contains("rustc knows no target \"quantum\""),
            "{error}"
        );
    }
}
