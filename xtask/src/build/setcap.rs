//! `--setcap`: a binary that listens on ports below 1024 without being run by root.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::shell;

/// What the binary may do: bind sockets to ports below 1024, capabilities(7).
const CAPABILITY: &str = "cap_net_bind_service=+ep";

/// The command that gives files capabilities, and what it takes to be allowed to.
#[derive(Debug)]
pub(crate) struct Setcap {
    program: PathBuf,
    sudo: Option<PathBuf>,
}

impl Setcap {
    /// Finds out before the build whether the binary can be given anything afterwards.
    pub(crate) fn find(target: Option<&str>) -> Result<Self> {
        if !target.unwrap_or(std::env::consts::OS).contains("linux") {
            bail!("files have capabilities on Linux only; leave --setcap out");
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let root = shell::ask(Command::new("id").arg("-u"))?.stdout.trim() == "0";
        Self::find_in(&path, &["/usr/sbin", "/sbin"], root)
    }

    /// `beyond` is where programs for administrators are, which the paths of others leave out.
    fn find_in(path: &OsStr, beyond: &[&str], root: bool) -> Result<Self> {
        let directories = || std::env::split_paths(path).chain(beyond.iter().map(PathBuf::from));
        let found = |name: &str| {
            let mut files = directories().map(|directory| directory.join(name));
            files.find(|file| file.is_file())
        };
        let Some(program) = found("setcap") else {
            bail!(
                "setcap is not installed; install it (Debian: apt install libcap2-bin), or leave --setcap out"
            );
        };
        let sudo = match root {
            true => None,
            false => Some(found("sudo")),
        };
        if sudo == Some(None) {
            bail!(
                "only root may run setcap, and sudo is not installed; build without --setcap, and have root run: \
                 setcap {CAPABILITY} FILE"
            );
        }
        Ok(Self {
            program,
            sudo: sudo.flatten(),
        })
    }

    fn command(&self, file: &Path) -> Command {
        let mut command = match &self.sudo {
            Some(sudo) => {
                let mut command = Command::new(sudo);
                command.arg("--").arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command.arg(CAPABILITY).arg(file);
        command
    }

    pub(crate) fn run(&self, file: &Path) -> Result<()> {
        let mut command = self.command(file);
        // With the terminal: sudo may ask for a password there.
        eprintln!("$ {}", shell::shown(&command));
        if !command.status()?.success() {
            bail!(
                "setcap failed, for the reason above; the file system of the output has to support capabilities, and \
                 who builds has to be allowed to give them. Leave --setcap out otherwise"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with empty files of these names.
    fn having(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        dir
    }

    fn shown(command: &Command) -> String {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<_> = words.map(OsStr::to_string_lossy).collect();
        words.join(" ")
    }

    #[test]
    fn who_is_not_root_asks_sudo() {
        let dir = having(&["setcap", "sudo"]);
        let path = dir.path().as_os_str();
        let at = dir.path().display();
        for (root, expected) in [
            (true, format!("{at}/setcap cap_net_bind_service=+ep /x")),
            (
                false,
                format!("{at}/sudo -- {at}/setcap cap_net_bind_service=+ep /x"),
            ),
        ] {
            let setcap = Setcap::find_in(path, &[], root).unwrap();
            assert_eq!(shown(&setcap.command(Path::new("/x"))), expected);
        }
    }

    #[test]
    fn programs_that_are_not_there_are_named_with_the_remedy() {
        let refused = |names: &[&str]| {
            let dir = having(names);
            let error = Setcap::find_in(dir.path().as_os_str(), &[], false).unwrap_err();
            error.to_string()
        };
        assert!(refused(&["sudo"]).contains("apt install libcap2-bin"));
        assert!(
            refused(&["setcap"]).contains("have root run: setcap cap_net_bind_service=+ep FILE")
        );
        let error = Setcap::find(Some("x86_64-pc-windows-gnu")).unwrap_err();
        assert!(error.to_string().contains("on Linux only"), "{error}");
    }

    #[test]
    fn a_path_without_the_directories_of_administrators_is_no_obstacle() {
        let dir = having(&["setcap"]);
        let beyond = dir.path().to_str().unwrap();
        assert!(Setcap::find_in(OsStr::new(""), &[beyond], true).is_ok());
    }
}
