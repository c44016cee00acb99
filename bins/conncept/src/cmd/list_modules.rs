//! `conncept list-modules`

use std::fmt::Write as _;
use std::process::ExitCode;

use l4_core::registry::ModuleInfo;
use serde_json::json;

use crate::cli::ListModulesArgs;
use crate::{Build, cmd};

pub(crate) fn run(args: &ListModulesArgs, build: &Build) -> ExitCode {
    let mut modules: Vec<ModuleInfo> = build.registry.modules().collect();
    modules.sort_by(|a, b| a.id.cmp(&b.id));
    let (standard, others) = modules
        .into_iter()
        .partition(|module| build.standard.contains(&module.id));
    let standard = if args.skip_standard {
        Vec::new()
    } else {
        standard
    };
    cmd::print(&match args.json {
        true => json_list(&standard, &others),
        false => text_list(args, &standard, &others),
    })
}

fn text_list(args: &ListModulesArgs, standard: &[ModuleInfo], others: &[ModuleInfo]) -> String {
    let mut text = String::new();
    for (modules, title) in [(standard, "Standard"), (others, "Non-standard")] {
        // A list that was left out has no total, and a build without further modules has no second list.
        if modules.is_empty() {
            continue;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        for module in modules {
            text.push_str(&module.id);
            if args.packages {
                let _ = write!(text, " {}", module.origin.package);
            }
            if args.versions {
                let _ = write!(text, " v{}", module.origin.version);
            }
            text.push('\n');
        }
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\n  {title} modules: {}", modules.len());
    }
    text
}

fn json_list(standard: &[ModuleInfo], others: &[ModuleInfo]) -> String {
    let entry = |module: &ModuleInfo, kind| {
        json!({
            "module_name": module.id,
            "module_type": kind,
            "version": format!("v{}", module.origin.version),
            "package_url": module.origin.package,
        })
    };
    let all: Vec<_> = standard
        .iter()
        .map(|module| entry(module, "standard"))
        .chain(others.iter().map(|module| entry(module, "non-standard")))
        .collect();
    format!("{:#}\n", serde_json::Value::from(all))
}
