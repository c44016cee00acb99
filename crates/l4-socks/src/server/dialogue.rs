//! What a client and a server of SOCKS version 5 say to each other before anything is relayed: RFC 1928 sections 3, 4
//! and 6, RFC 1929.
//!
//! A function of the bytes received so far, without sockets and clock. `socks5-proto` reads the messages; its readers
//! are made for sockets and take one byte at a time, so they are run over the unread bytes, where they never wait, and
//! run again when they had too few.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use socks5_proto::handshake::{self, Method, password};
use socks5_proto::{
    Address, Command, Error, ProtocolError, Reply, Request, Response, SOCKS_VERSION,
};

use super::Credentials;

/// What a server allows.
pub struct Rules {
    /// Who may use it; `None` is everybody, without a password.
    pub credentials: Option<Credentials>,
    /// The commands that may be asked for.
    pub commands: Vec<Command>,
}

/// The server's side of one dialogue.
pub struct Dialogue<'a> {
    rules: &'a Rules,
    next: Message,
}

/// What the client has to send next.
#[derive(Clone, Copy)]
enum Message {
    Greeting,
    Password,
    Request,
}

/// What the server does about one message of the client.
#[derive(Debug)]
pub enum Turn {
    /// It answers and waits for the next message.
    Answer {
        /// The length of the message.
        taken: usize,
        /// The bytes to send.
        answer: [u8; 2],
    },
    /// It does what was asked for. The [`reply`] is up to who does it.
    Request {
        /// The length of the message.
        taken: usize,
        /// What was asked for.
        request: Request,
    },
    /// It says why, in the words there are, and closes.
    Refuse {
        /// The bytes to send.
        answer: Vec<u8>,
        /// Why.
        why: Refusal,
    },
}

/// Why a dialogue came to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The first byte of a message is not 5.
    #[error("unsupported SOCKS version {0}")]
    Version(u8),
    /// The client offers no way to authenticate that is good here.
    #[error("failed to authenticate: no supported authentication mechanism")]
    NoMethod,
    /// The first byte of the password message is not 1.
    #[error("failed to authenticate: unsupported version {0} of the password exchange")]
    PasswordVersion(u8),
    /// Nobody listed has that name and password.
    #[error("failed to authenticate: user authentication failed")]
    WrongPassword,
    /// The address is none of IPv4, name and IPv6.
    #[error("unsupported address type {0}")]
    AddressType(u8),
    /// There is no such command.
    #[error("unsupported command {0}")]
    Command(u8),
    /// The command is not allowed.
    #[error("{} to {destination} blocked by rules", name(*command))]
    NotAllowed {
        /// The command.
        command: Command,
        /// What it was for.
        destination: String,
    },
}

impl<'a> Dialogue<'a> {
    /// A dialogue that begins.
    pub fn new(rules: &'a Rules) -> Self {
        let next = Message::Greeting;
        Self { rules, next }
    }

    /// What to do about the message that `bytes` begin with; `None` as long as more of them are needed. Of what follows
    /// a message nothing is looked at.
    pub fn turn(&mut self, bytes: &[u8]) -> Option<Turn> {
        match self.next {
            Message::Greeting => self.greeting(bytes),
            Message::Password => self.password(bytes),
            Message::Request => self.request(bytes),
        }
    }

    fn greeting(&mut self, mut bytes: &[u8]) -> Option<Turn> {
        let before = bytes.len();
        let offered = match now(handshake::Request::read_from(&mut bytes))? {
            Ok(greeting) => greeting.methods,
            Err(error) => return refuse_version(error),
        };
        let (method, next) = match self.rules.credentials {
            None => (Method::NONE, Message::Request),
            Some(_) => (Method::PASSWORD, Message::Password),
        };
        if !offered.contains(&method) {
            return Some(Turn::Refuse {
                answer: vec![SOCKS_VERSION, Method::UNACCEPTABLE.0],
                why: Refusal::NoMethod,
            });
        }
        self.next = next;
        Some(Turn::Answer {
            taken: before - bytes.len(),
            answer: [SOCKS_VERSION, method.0],
        })
    }

    fn password(&mut self, mut bytes: &[u8]) -> Option<Turn> {
        let before = bytes.len();
        let (why, answer) = match now(password::Request::read_from(&mut bytes))? {
            Ok(given) => {
                let credentials = self.rules.credentials.as_ref();
                if credentials.is_some_and(|known| known.admit(&given.username, &given.password)) {
                    self.next = Message::Request;
                    return Some(Turn::Answer {
                        taken: before - bytes.len(),
                        answer: [password::SUBNEGOTIATION_VERSION, 0],
                    });
                }
                // Not the library's, which says 255: any number but 0 is a failure, and 1 is what clients know.
                (
                    Refusal::WrongPassword,
                    vec![password::SUBNEGOTIATION_VERSION, 1],
                )
            }
            Err(password::Error::SubNegotiationVersion { version }) => {
                (Refusal::PasswordVersion(version), Vec::new())
            }
            // There are no others but the end of the bytes.
            Err(_) => return None,
        };
        Some(Turn::Refuse { answer, why })
    }

    fn request(&self, mut bytes: &[u8]) -> Option<Turn> {
        let before = bytes.len();
        let request = match now(Request::read_from(&mut bytes))? {
            Ok(request) => request,
            Err(Error::Protocol(ProtocolError::InvalidCommand { command, .. })) => {
                return unknown_command(command, bytes);
            }
            Err(Error::Protocol(ProtocolError::InvalidAddressTypeInRequest {
                address_type,
                ..
            })) => {
                return Some(Turn::Refuse {
                    answer: reply(Reply::AddressTypeNotSupported, Address::unspecified()),
                    why: Refusal::AddressType(address_type),
                });
            }
            Err(error) => return refuse_version(error),
        };
        if !self.rules.commands.contains(&request.command) {
            return Some(Turn::Refuse {
                answer: reply(Reply::ConnectionNotAllowed, Address::unspecified()),
                why: Refusal::NotAllowed {
                    command: request.command,
                    destination: text(&request.address),
                },
            });
        }
        Some(Turn::Request {
            taken: before - bytes.len(),
            request,
        })
    }
}

/// The message that tells a client how its request went.
pub fn reply(reply: Reply, address: Address) -> Vec<u8> {
    let mut bytes = Vec::new();
    Response::new(reply, address).write_to_buf(&mut bytes);
    bytes
}

/// An address for logs. A name can hold any bytes.
pub fn text(address: &Address) -> String {
    match address {
        Address::SocketAddress(address) => address.to_string(),
        Address::DomainAddress(name, port) => format!("{}:{port}", name.escape_ascii()),
    }
}

/// The name of a command, as in RFC 1928; ASSOCIATE is short for UDP ASSOCIATE.
pub fn name(command: Command) -> &'static str {
    match command {
        Command::Connect => "CONNECT",
        Command::Bind => "BIND",
        Command::Associate => "ASSOCIATE",
    }
}

/// `rest` is what follows the command. The library stops there; but a bad address type is complained about first, and a
/// client that is still sending its request might not read the reply.
fn unknown_command(command: u8, rest: &[u8]) -> Option<Turn> {
    /// The longest request behind the command.
    const REST: usize = 1 + 1 + 1 + 255 + 2;
    let rest = rest.get(..REST).unwrap_or(rest);
    let known = [&[SOCKS_VERSION, u8::from(Command::Connect)], rest].concat();
    let nothing_allowed = Rules {
        credentials: None,
        commands: Vec::new(),
    };
    let dialogue = Dialogue {
        rules: &nothing_allowed,
        next: Message::Request,
    };
    Some(match dialogue.request(&known)? {
        Turn::Refuse {
            why: Refusal::NotAllowed { .. },
            ..
        } => Turn::Refuse {
            answer: reply(Reply::CommandNotSupported, Address::unspecified()),
            why: Refusal::Command(command),
        },
        other => other,
    })
}

/// What is not SOCKS gets no answer in SOCKS.
fn refuse_version(error: Error) -> Option<Turn> {
    match error {
        Error::Protocol(ProtocolError::ProtocolVersion { version }) => Some(Turn::Refuse {
            answer: Vec::new(),
            why: Refusal::Version(version),
        }),
        // The end of the bytes.
        _ => None,
    }
}

/// The output of a future that reads from bytes in memory, and so is always ready.
pub(super) fn now<T>(reading: impl Future<Output = T>) -> Option<T> {
    match pin!(reading).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn open(commands: &[Command]) -> Rules {
        Rules {
            credentials: None,
            commands: commands.to_vec(),
        }
    }

    fn guarded() -> Rules {
        Rules {
            credentials: Some(Credentials::new([("bob", "qHoEtVpGRM")])),
            commands: vec![Command::Connect, Command::Associate],
        }
    }

    /// All that the server says to a client that sends `bytes`, what it was asked to do, and what is left.
    #[derive(Debug, PartialEq)]
    struct Talk {
        said: Vec<u8>,
        end: End,
        left: Vec<u8>,
    }

    #[derive(Debug, PartialEq)]
    enum End {
        Waits,
        Does(Command, Address),
        Refuses(Refusal),
    }

    /// The bytes come in pieces that end at `cuts`.
    fn talk_in_pieces(rules: &Rules, bytes: &[u8], cuts: &[usize]) -> Talk {
        let mut dialogue = Dialogue::new(rules);
        let (mut said, mut from) = (Vec::new(), 0);
        for end in cuts.iter().copied().chain([bytes.len()]) {
            while let Some(turn) = dialogue.turn(&bytes[from..end.max(from)]) {
                match turn {
                    Turn::Answer { taken, answer } => {
                        said.extend(answer);
                        from += taken;
                    }
                    Turn::Request { taken, request } => {
                        let end = End::Does(request.command, request.address);
                        let left = bytes[from + taken..].to_vec();
                        return Talk { said, end, left };
                    }
                    Turn::Refuse { answer, why } => {
                        said.extend(answer);
                        let (end, left) = (End::Refuses(why), Vec::new());
                        return Talk { said, end, left };
                    }
                }
            }
        }
        let left = bytes[from..].to_vec();
        Talk {
            said,
            end: End::Waits,
            left,
        }
    }

    /// As it is, whole or byte by byte.
    fn talk(rules: &Rules, bytes: &[u8]) -> Talk {
        let whole = talk_in_pieces(rules, bytes, &[]);
        let every: Vec<usize> = (0..bytes.len()).collect();
        assert_eq!(whole, talk_in_pieces(rules, bytes, &every), "{bytes:02x?}");
        whole
    }

    fn ip(text: &str) -> Address {
        Address::SocketAddress(text.parse().unwrap())
    }

    const GREETING: &[u8] = b"\x05\x01\x00";

    #[test]
    fn a_request_with_everything_behind_it_leaves_just_that_behind() {
        let rules = open(&[Command::Connect]);
        for (request, address) in [
            (
                &b"\x05\x01\x00\x01\xc0\x00\x02\x0a\x1f\x90"[..],
                ip("192.0.2.10:8080"),
            ),
            (
                b"\x05\x01\x00\x03\x0bexample.com\x00\x50",
                Address::DomainAddress(b"example.com".to_vec(), 80),
            ),
            (
                b"\x05\x01\x00\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x01\xbb",
                ip("[2001:db8::1]:443"),
            ),
            // The reserved byte is nobody's business.
            (
                b"\x05\x01\x7f\x03\x00\x00\x50",
                Address::DomainAddress(Vec::new(), 80),
            ),
        ] {
            let all = [GREETING, request, b"GET / HTTP/1.1\r\n"].concat();
            let talk = talk(&rules, &all);
            assert_eq!(talk.said, b"\x05\x00");
            assert_eq!(talk.end, End::Does(Command::Connect, address));
            assert_eq!(talk.left, b"GET / HTTP/1.1\r\n");
        }
    }

    #[test]
    fn dialogues_of_real_clients_end_with_what_they_want_and_their_first_words_to_the_target() {
        let guarded = Rules {
            credentials: Some(Credentials::new([("alice", "secret")])),
            commands: vec![Command::Connect],
        };
        let open = open(&[Command::Connect]);
        let name = Address::DomainAddress(b"www.example.com".to_vec(), 80);
        for (rules, dialogue, said, address, words) in [
            (
                &open,
                &include_bytes!("../../testdata/dialogue-curl.bin")[..],
                &b"\x05\x00"[..],
                ip("192.0.2.10:8080"),
                &b"GET / HTTP/1.1\r\n"[..],
            ),
            (
                &open,
                include_bytes!("../../testdata/dialogue-curl-ipv6.bin"),
                b"\x05\x00",
                ip("[2001:db8::10]:8080"),
                b"GET / HTTP/1.1\r\n",
            ),
            (
                &guarded,
                include_bytes!("../../testdata/dialogue-curl-name.bin"),
                b"\x05\x02\x01\x00",
                name,
                b"GET / HTTP/1.1\r\n",
            ),
            (
                &open,
                include_bytes!("../../testdata/dialogue-nc.bin"),
                b"\x05\x00",
                ip("192.0.2.10:22"),
                b"SSH-2.0-x\r\n",
            ),
        ] {
            let talk = talk(rules, dialogue);
            assert_eq!(talk.said, said);
            assert_eq!(talk.end, End::Does(Command::Connect, address));
            assert!(talk.left.starts_with(words), "{talk:?}");
        }
    }

    #[test]
    fn greetings_of_real_clients_are_answered_with_the_method_that_is_wanted() {
        let (open, guarded) = (open(&[Command::Connect]), guarded());
        for (greeting, without, with) in [
            (
                &include_bytes!("../../testdata/socks5-curl.bin")[..],
                0,
                0xff,
            ),
            (include_bytes!("../../testdata/socks5-curl-user.bin"), 0, 2),
            (include_bytes!("../../testdata/socks5-curl-basic.bin"), 0, 2),
            (include_bytes!("../../testdata/socks5-nc.bin"), 0, 0xff),
            (b"\x05\x01\x02", 0xff, 2),
            (b"\x05\x00", 0xff, 0xff),
            (b"\x05\x03\x80\x03\x01", 0xff, 0xff),
        ] {
            for (rules, method) in [(&open, without), (&guarded, with)] {
                let talk = talk(rules, greeting);
                assert_eq!(talk.said, [5, method], "{greeting:02x?}");
                let end = match method {
                    0xff => End::Refuses(Refusal::NoMethod),
                    _ => End::Waits,
                };
                assert_eq!(talk.end, end);
            }
        }
    }

    #[test]
    fn a_password_is_asked_for_and_must_be_right() {
        let greeting = b"\x05\x02\x00\x02";
        let request = b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50";
        for (password, said, refused) in [
            (
                &b"\x01\x03bob\x0aqHoEtVpGRM"[..],
                &b"\x05\x02\x01\x00"[..],
                None,
            ),
            (
                b"\x01\x03bob\x03foo",
                b"\x05\x02\x01\x01",
                Some(Refusal::WrongPassword),
            ),
            (
                b"\x01\x03eve\x0aqHoEtVpGRM",
                b"\x05\x02\x01\x01",
                Some(Refusal::WrongPassword),
            ),
            (
                b"\x01\x00\x00",
                b"\x05\x02\x01\x01",
                Some(Refusal::WrongPassword),
            ),
            (
                b"\x05\x03bob",
                b"\x05\x02",
                Some(Refusal::PasswordVersion(5)),
            ),
        ] {
            let talk = talk(&guarded(), &[greeting, password, request].concat());
            assert_eq!(talk.said, said, "{password:02x?}");
            assert_eq!(
                talk.end,
                match refused {
                    Some(why) => End::Refuses(why),
                    None => End::Does(Command::Connect, ip("127.0.0.1:80")),
                }
            );
        }
    }

    #[test]
    fn a_password_is_no_detour_around_the_method_that_was_chosen() {
        let eager = b"\x05\x02\x00\x02\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50";
        let talk = talk(&guarded(), eager);
        assert_eq!(talk.said, b"\x05\x02");
        assert_eq!(talk.end, End::Refuses(Refusal::PasswordVersion(5)));
    }

    #[test]
    fn what_is_not_version_five_is_not_answered_whatever_follows() {
        let rules = open(&[Command::Connect]);
        assert_eq!(talk(&rules, b"\x04\x01\x00\x50").said, b"");
        assert_eq!(talk(&rules, b"G").end, End::Refuses(Refusal::Version(b'G')));
        let second = talk(&rules, &[GREETING, b"\x04"].concat());
        assert_eq!(second.said, b"\x05\x00");
        assert_eq!(second.end, End::Refuses(Refusal::Version(4)));
    }

    #[test]
    fn each_reason_to_refuse_a_request_has_its_code_and_no_address() {
        let rules = open(&[Command::Connect]);
        let refused = |request: &[u8]| {
            let talk = talk(&rules, &[GREETING, request].concat());
            let End::Refuses(why) = talk.end else {
                panic!("{talk:?}");
            };
            assert_eq!(talk.said[..3], [5, 0, 5], "{request:02x?}");
            assert_eq!(talk.said[4..], [0, 1, 0, 0, 0, 0, 0, 0]);
            (talk.said[3], why.to_string())
        };
        for (request, code, why) in [
            (&b"\x05\x01\x00\x02"[..], 8, "unsupported address type 2"),
            (b"\x05\x01\x00\x00", 8, "unsupported address type 0"),
            // Of two faults the one that the reference finds first.
            (b"\x05\x09\x00\x05", 8, "unsupported address type 5"),
            (
                b"\x05\x00\x00\x01\x7f\0\0\x01\0\x50",
                7,
                "unsupported command 0",
            ),
            (b"\x05\x04\x00\x03\x01a\0\x50", 7, "unsupported command 4"),
            (
                b"\x05\x02\x00\x01\x7f\0\0\x01\0\x50",
                2,
                "BIND to 127.0.0.1:80 blocked by rules",
            ),
            (
                b"\x05\x03\x00\x03\x02\n\xff\0\x50",
                2,
                "ASSOCIATE to \\n\\xff:80 blocked by rules",
            ),
        ] {
            assert_eq!(refused(request), (code, why.to_owned()), "{request:02x?}");
        }
    }

    #[test]
    fn a_request_with_an_unknown_command_is_read_to_its_end_before_it_is_refused() {
        let rules = open(&[Command::Connect]);
        let request = b"\x05\x07\x00\x01\x7f\x00\x00\x01\x00\x50";
        for cut in 0..request.len() {
            let talk = talk(&rules, &[GREETING, &request[..cut]].concat());
            assert_eq!(talk.end, End::Waits, "{cut}");
        }
    }

    #[test]
    fn a_success_carries_the_address() {
        assert_eq!(
            reply(Reply::Succeeded, ip("192.0.2.1:1080")),
            b"\x05\x00\x00\x01\xc0\x00\x02\x01\x04\x38"
        );
        assert_eq!(
            reply(Reply::Succeeded, ip("[2001:db8::7]:80")),
            b"\x05\x00\x00\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x07\x00\x50"
        );
    }

    proptest! {
        #[test]
        fn the_same_bytes_make_the_same_dialogue_however_they_are_cut(
            guard in any::<bool>(),
            start in proptest::sample::select(vec![
                &b""[..],
                GREETING,
                b"\x05\x02\x00\x02",
                b"\x05\x02\x00\x02\x01\x03bob\x0aqHoEtVpGRM",
                b"\x05\x02\x00\x02\x01\x03bob\x0aqHoEtVpGRM\x05\x01\x00\x03",
                b"\x05\x01\x00\x05\x09\x00",
            ]),
            rest in proptest::collection::vec(prop_oneof![0_u8..6, any::<u8>()], 0..40),
            cuts in proptest::collection::vec(0_usize..80, 0..6),
        ) {
            let rules = if guard { guarded() } else { open(&[Command::Connect]) };
            let bytes = [start, &rest].concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            prop_assert_eq!(talk(&rules, &bytes), talk_in_pieces(&rules, &bytes, &cuts));
        }
    }
}
