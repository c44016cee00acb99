//! `conncept environ`

use std::env;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::EnvironArgs;
use crate::{cmd, envfile, runtime, version};

pub(crate) fn run(args: &EnvironArgs) -> ExitCode {
    if let Err(error) = envfile::apply(&args.envfile) {
        return cmd::fail(&error);
    }
    print()
}

/// Prints what is known of the surroundings, then all variables.
pub(crate) fn print() -> ExitCode {
    let directories = Directories::of(|name| env::var_os(name).map(PathBuf::from));
    let autosave = directories.config.join("autosave.json");
    let working_directory = env::current_dir().unwrap_or_default();
    let mut text = String::new();
    for (name, value) in [
        ("conncept.HomeDir", directories.home.display().to_string()),
        (
            "conncept.AppDataDir",
            directories.data.display().to_string(),
        ),
        (
            "conncept.AppConfigDir",
            directories.config.display().to_string(),
        ),
        (
            "conncept.ConfigAutosavePath",
            autosave.display().to_string(),
        ),
        ("conncept.Version", version::short()),
        ("runtime.OS", env::consts::OS.to_owned()),
        ("runtime.Arch", env::consts::ARCH.to_owned()),
        ("runtime.Target", env!("CONNCEPT_TARGET").to_owned()),
        ("runtime.Rustc", version::rustc().to_owned()),
        ("runtime.NumCPU", runtime::workers(None).to_string()),
        ("runtime.Workers", runtime::workers(None).to_string()),
        ("os.Getwd", working_directory.display().to_string()),
    ] {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name}={value}");
    }
    text.push('\n');
    for (name, value) in env::vars_os() {
        if name != envfile::MARK {
            let _ = writeln!(
                text,
                "{}={}",
                name.to_string_lossy(),
                value.to_string_lossy()
            );
        }
    }
    cmd::print(&text)
}

/// Where files of the program belong.
struct Directories {
    home: PathBuf,
    data: PathBuf,
    config: PathBuf,
}

impl Directories {
    fn of(variable: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let variable = |name| variable(name).filter(|path| !path.as_os_str().is_empty());
        let home = variable("HOME");
        let name = if cfg!(target_os = "macos") {
            "Conncept"
        } else {
            "conncept"
        };
        let choose = |xdg, below_home| {
            variable(xdg)
                .or_else(|| home.as_ref().map(|home| home.join(below_home)))
                .unwrap_or_else(|| PathBuf::from("."))
                .join(name)
        };
        let (data, config) = if cfg!(target_os = "macos") {
            ("Library/Application Support", "Library/Application Support")
        } else {
            (".local/share", ".config")
        };
        Self {
            data: choose("XDG_DATA_HOME", data),
            config: choose("XDG_CONFIG_HOME", config),
            home: home.unwrap_or_else(|| PathBuf::from(".")),
        }
    }
}

#[cfg(test)]
#[cfg(not(target_os = "macos"))]
mod tests {
    use super::*;

    fn directories(variables: &[(&str, &str)]) -> [String; 2] {
        let found = Directories::of(|name| {
            let (_, value) = variables.iter().find(|(key, _)| *key == name)?;
            Some(PathBuf::from(value))
        });
        [found.data, found.config].map(|path| path.display().to_string())
    }

    #[test]
    fn directories_follow_xdg_then_home_then_the_working_directory() {
        assert_eq!(
            directories(&[("HOME", "/h"), ("XDG_DATA_HOME", "/d")]),
            ["/d/conncept", "/h/.config/conncept"]
        );
        assert_eq!(
            directories(&[("XDG_CONFIG_HOME", "")]),
            ["./conncept", "./conncept"]
        );
    }
}
