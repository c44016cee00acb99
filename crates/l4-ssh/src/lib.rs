//! SSH for Conncept: the matcher `ssh`. Nothing beyond the first four bytes is looked at.

use l4_core::Registry;
use l4_core::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;

/// Enters the modules of this crate.
pub fn register(reg: &mut Registry) {
    reg.origin(l4_core::origin!());
    reg.matcher::<MatchSsh>();
    reg.page(include_str!("../docs/matchers/ssh.md"));
}

/// Matches a connection that begins as SSH does: with `SSH-`, the start of the client's identification string (RFC
/// 4253 section 4.2).
///
/// Only servers may send other lines before it, so four bytes decide. There are no settings: `{"ssh": {}}`.
pub struct MatchSsh;

/// The matcher `ssh` has no settings.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SshConfig {}

impl MatcherModule for MatchSsh {
    const NAME: &'static str = "ssh";
    type Config = SshConfig;

    fn provision(_config: SshConfig, _cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        Ok(Self)
    }
}

impl Matcher for MatchSsh {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        match Verdict::prefix(view.bytes(), b"SSH-") {
            // The next byte can already refuse. Asking for all four would keep a client waiting whose greeting is
            // shorter and who then expects an answer, as a SOCKS5 greeting of three bytes.
            Verdict::More(_) => Verdict::More(1),
            decided => decided,
        }
    }

    fn cost(&self) -> Cost {
        Cost::Prefix
    }
}

#[cfg(test)]
mod tests {
    use l4_testkit::{check, decided_after};
    use proptest::prelude::*;

    use super::*;

    fn ssh(json: &str) -> Result<MatchSsh, Vec<l4_core::config::ConfigError>> {
        l4_testkit::matcher(register, json)
    }

    #[test]
    fn identification_string_matches_at_its_fourth_byte() {
        for hello in [
            &b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"[..],
            b"SSH-1.99-x\n",
            b"SSH-",
        ] {
            check(&MatchSsh, hello, Verdict::Match);
            assert_eq!(decided_after(&MatchSsh, hello), Some(4));
        }
    }

    #[test]
    fn other_protocols_are_refused_at_the_first_other_byte() {
        for (other, after) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], 1),
            (b"ssh-2.0-x\r\n", 1),
            (b"STARTTLS\r\n", 2),
            (b"SSH 2.0", 4),
            (b"\x16\x03\x01", 1),
            (b"\x05\x01\x00", 1),
            (b"\r\nSSH-2.0-x", 1),
        ] {
            check(&MatchSsh, other, Verdict::No);
            assert_eq!(decided_after(&MatchSsh, other), Some(after));
        }
    }

    #[test]
    fn too_few_bytes_leave_it_open() {
        check(&MatchSsh, b"", Verdict::More(0));
        check(&MatchSsh, b"SSH", Verdict::More(0));
    }

    #[test]
    fn settings_are_refused_by_name() {
        assert!(ssh("{}").is_ok());
        let errors = ssh(r#"{"version": 2}"#).err().expect("errors");
        assert_eq!(errors[0].pointer(), "/version");
        assert_eq!(ssh("[]").err().expect("errors").len(), 1);
    }

    proptest! {
        #[test]
        fn any_bytes_keep_the_contract(start in 0_usize..5, rest in proptest::collection::vec(any::<u8>(), 0..8)) {
            let bytes = [&b"SSH-"[..start.min(4)], &rest].concat();
            let expected = match bytes.starts_with(b"SSH-") {
                true => Verdict::Match,
                false if b"SSH-".starts_with(&bytes[..]) => Verdict::More(0),
                false => Verdict::No,
            };
            check(&MatchSsh, &bytes, expected);
        }
    }
}
