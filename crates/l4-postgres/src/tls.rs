//! The handler `postgres_tls`.

use std::io;
use std::time::Duration;

use l4_core::conn::Received;
use l4_core::prelude::*;
use l4_core::{EndReason, Error, Phase, Side};
use schemars::JsonSchema;
use serde::Deserialize;

/// Agrees to the TLS that a PostgreSQL client asks for; the handler `tls` that follows does it.
///
/// A client asks in eight bytes and begins TLS once the server has agreed ("SSL Session Encryption" in the PostgreSQL
/// documentation). One that can asks for GSSAPI encryption before: it is told that there is none, and goes on.
pub struct PostgresTls {
    timeout: Option<Duration>,
}

/// Configuration of `postgres_tls`.
///
/// ```json
/// {"handler": "postgres_tls", "timeout": "5s"}
/// ```
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresTlsConfig {
    /// How long the client may take to ask for TLS. 0 is no limit. Default: `"10s"`.
    #[serde(default)]
    timeout: Option<At<GoDuration>>,
}

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

impl HandlerModule for PostgresTls {
    const NAME: &'static str = "postgres_tls";
    const STREAMS_ONLY: bool = true;
    type Config = PostgresTlsConfig;

    fn provision(config: PostgresTlsConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let timeout = cx.time_limit(config.timeout, DEFAULT_TIMEOUT)?;
        Ok(Self { timeout })
    }
}

impl AsyncHandler for PostgresTls {
    async fn handle(&self, mut conn: Connection, _: Rest<'_>) -> Result<Flow> {
        if conn.is_datagram() {
            return Err(Error::new(
                Side::Internal,
                Phase::Handshake,
                EndReason::HandlerError,
                "PostgreSQL needs a stream",
            ));
        }
        let agreed = match self.timeout {
            Some(limit) => tokio::time::timeout(limit, agree(&mut conn))
                .await
                .unwrap_or(Err(Failure::TimedOut)),
            None => agree(&mut conn).await,
        };
        match agreed {
            Ok(()) => Ok(Flow::Next(conn)),
            Err(failure) => {
                let reason = match failure {
                    Failure::TimedOut => EndReason::HandshakeTimeout,
                    _ => EndReason::ClientError,
                };
                Err(Error::new(Side::Client, Phase::Handshake, reason, failure))
            }
        }
    }
}

/// Why there is no agreement.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("reading Postgres SSLRequest")]
    Read(#[source] io::Error),
    #[error("replying '{}' to Postgres {}", char::from(*.0), if *.0 == YES { "SSLRequest" } else { "GSSENCRequest" })]
    Reply(u8, #[source] io::Error),
    #[error(
        "expected a Postgres SSLRequest (length 8, code {SSL}); got length {length}, code {code} \
         (precede this handler with a matcher that confirms an SSLRequest)"
    )]
    Other { length: u32, code: u32 },
    #[error("the client did not ask for TLS in time")]
    TimedOut,
}

/// What is done about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Agree; TLS follows.
    Agree,
    /// Say no, and wait for the next request.
    Decline,
    /// It is none that can be agreed to.
    Other {
        /// Its length as it says.
        length: u32,
        /// Its code.
        code: u32,
    },
}

impl Turn {
    /// What is done about the request that `bytes` begin with: a length that counts itself, and a code. `declined` says
    /// whether one was declined before: a client that asks for the same again is none.
    pub fn of(bytes: &[u8], declined: bool) -> Parsed<Self> {
        let Some(([a, b, c, d, e, f, g, h], _)) = bytes.split_first_chunk::<REQUEST>() else {
            return Parsed::More(REQUEST - bytes.len());
        };
        let length = u32::from_be_bytes([*a, *b, *c, *d]);
        let code = u32::from_be_bytes([*e, *f, *g, *h]);
        Parsed::Done(match (length, code) {
            (8, SSL) => Self::Agree,
            (8, GSS) if !declined => Self::Decline,
            _ => Self::Other { length, code },
        })
    }
}

/// Answers the client's requests until TLS is agreed on. Nothing behind them is touched.
async fn agree(conn: &mut Connection) -> Result<(), Failure> {
    let mut declined = false;
    loop {
        let (answer, agreed) = match Turn::of(conn.unread(), declined) {
            Parsed::Done(Turn::Agree) => (YES, true),
            Parsed::Done(Turn::Decline) => (NO, false),
            Parsed::Done(Turn::Other { length, code }) => {
                return Err(Failure::Other { length, code });
            }
            Parsed::More(_) | Parsed::Not => match conn.fill().await.map_err(Failure::Read)? {
                Received::Data(_) => continue,
                Received::End => {
                    return Err(Failure::Read(io::ErrorKind::UnexpectedEof.into()));
                }
            },
        };
        conn.consume(REQUEST);
        let failed = |error| Failure::Reply(answer, error);
        conn.send(&[answer]).await.map_err(failed)?;
        if agreed {
            return Ok(());
        }
        declined = true;
    }
}

/// A request: its length and its code.
const REQUEST: usize = 8;

/// SSLRequest.
const SSL: u32 = 80_877_103;
/// GSSENCRequest.
const GSS: u32 = 80_877_104;

const YES: u8 = b'S';
const NO: u8 = b'N';

#[cfg(test)]
mod tests {
    use l4_core::Registry;
    use l4_testkit::{Router, connection, load, session};
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::register;

    const SSL_REQUEST: &[u8] = include_bytes!("../testdata/psql-require.bin");
    const GSS_REQUEST: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 48];
    const STARTUP: &[u8] = include_bytes!("../testdata/psql-disable.bin");

    /// Passes on what comes behind the handler.
    struct Behind;

    #[derive(Deserialize, JsonSchema)]
    struct BehindConfig {}

    impl HandlerModule for Behind {
        const NAME: &'static str = "behind";
        type Config = BehindConfig;

        fn provision(_: BehindConfig, _: &mut Provision<'_>) -> Result<Self, Rejected> {
            Ok(Self)
        }
    }

    impl AsyncHandler for Behind {
        async fn handle(&self, mut conn: Connection, _: Rest<'_>) -> Result<Flow> {
            let mut rest = Vec::new();
            conn.read_to_end(&mut rest).await?;
            conn.send(&[b"<", &*rest, b">"].concat()).await?;
            conn.shutdown().await?;
            Ok(Flow::Done)
        }
    }

    fn modules(reg: &mut Registry) {
        register(reg);
        reg.handler::<Behind>();
    }

    fn router(fields: &str) -> Router {
        let routes = format!(
            r#"[{{"handle":[{{"handler":"postgres_tls"{fields}}},{{"handler":"behind"}}]}}]"#
        );
        Router::new(modules, &routes)
    }

    async fn answer(segments: &[&[u8]]) -> (String, Option<EndReason>) {
        let (answer, record) = router("").exchange(segments).await;
        (String::from_utf8(answer).unwrap(), record.end_reason())
    }

    #[tokio::test]
    async fn a_request_is_agreed_to_and_nothing_behind_it_is_taken() {
        let done = Some(EndReason::Completed);
        assert_eq!(answer(&[SSL_REQUEST]).await, ("S<>".to_owned(), done));
        let eager = [SSL_REQUEST, b"hello"].concat();
        assert_eq!(answer(&[&eager]).await, ("S<hello>".to_owned(), done));
        let bytes: Vec<&[u8]> = eager.chunks(1).collect();
        assert_eq!(answer(&bytes).await, ("S<hello>".to_owned(), done));
    }

    #[tokio::test]
    async fn q1_gssapi_is_declined_once_and_then_tls_is_agreed_on() {
        let done = Some(EndReason::Completed);
        let both = [GSS_REQUEST, SSL_REQUEST, b"hello"].concat();
        assert_eq!(answer(&[&both]).await, ("NS<hello>".to_owned(), done));
        let segments = [&both[..5], &both[5..12], &both[12..]];
        assert_eq!(answer(&segments).await, ("NS<hello>".to_owned(), done));
        let again = [GSS_REQUEST, GSS_REQUEST, SSL_REQUEST].concat();
        let refused = Some(EndReason::ClientError);
        assert_eq!(answer(&[&again]).await, ("N".to_owned(), refused));
    }

    #[tokio::test]
    async fn anything_else_is_refused_without_an_answer() {
        for bytes in [
            STARTUP,
            include_bytes!("../testdata/psql-cancel.bin"),
            b"GET / HTTP/1.1\r\n",
            &[0, 0, 0, 9, 4, 210, 22, 47, 0],
            &SSL_REQUEST[..7],
            b"",
        ] {
            let refused = Some(EndReason::ClientError);
            assert_eq!(
                answer(&[bytes]).await,
                (String::new(), refused),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn an_error_says_what_came_instead() {
        let Parsed::Done(Turn::Other { length, code }) = Turn::of(STARTUP, false) else {
            panic!("{:?}", Turn::of(STARTUP, false));
        };
        let length_of_startup = u32::try_from(STARTUP.len()).unwrap();
        assert_eq!((length, code), (length_of_startup, 0x0003_0000));
        assert_eq!(
            Failure::Other { length: 9, code: 1 }.to_string(),
            "expected a Postgres SSLRequest (length 8, code 80877103); got length 9, code 1 \
             (precede this handler with a matcher that confirms an SSLRequest)"
        );
        let text = |failure: Failure| {
            Error::new(
                Side::Client,
                Phase::Handshake,
                EndReason::ClientError,
                failure,
            )
            .to_string()
        };
        let broken = || io::ErrorKind::BrokenPipe.into();
        assert_eq!(
            text(Failure::Read(broken())),
            "reading Postgres SSLRequest: broken pipe"
        );
        assert_eq!(
            text(Failure::Reply(YES, broken())),
            "replying 'S' to Postgres SSLRequest: broken pipe"
        );
        assert_eq!(
            text(Failure::Reply(NO, broken())),
            "replying 'N' to Postgres GSSENCRequest: broken pipe"
        );
    }

    /// Row L1 of docs/defects.md.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_ask_in_time_is_let_go() {
        for (fields, said, seconds) in [
            ("", &b""[..], 10),
            ("", &SSL_REQUEST[..7], 10),
            ("", GSS_REQUEST, 10),
            (r#","timeout":"3s""#, b"", 3),
        ] {
            let (conn, mut client) = connection(64);
            let before = tokio::time::Instant::now();
            let (record, serving) = router(fields).serve(conn);
            client.write_all(said).await.unwrap();
            serving.await.unwrap();
            assert_eq!(before.elapsed().as_secs(), seconds);
            assert_eq!(record.end_reason(), Some(EndReason::HandshakeTimeout));
        }
    }

    #[tokio::test]
    async fn a_datagram_session_is_refused() {
        let (conn, peer) = session();
        let (record, serving) = router("").serve(conn);
        peer.send(SSL_REQUEST);
        serving.await.unwrap();
        assert_eq!(record.end_reason(), Some(EndReason::HandlerError));
        assert!(peer.end().await.is_empty());
    }

    #[test]
    fn bad_values_are_refused_in_their_place() {
        for (fields, place) in [
            (r#""timeout":"-1s""#, "/timeout"),
            (r#""timeout":"soon""#, "/timeout"),
            (r#""tls":{}"#, "/tls"),
        ] {
            let config = format!(
                r#"{{"apps":{{"layer4":{{"servers":{{"a":{{"listen":["127.0.0.1:1"],
                    "routes":[{{"handle":[{{"handler":"postgres_tls",{fields}}}]}}]}}}}}}}}}}"#
            );
            let errors = load(register, &config).app.err().unwrap();
            assert_eq!(errors.len(), 1);
            let pointer = errors[0].pointer();
            assert!(pointer.ends_with(&format!("/handle/0{place}")), "{pointer}");
        }
    }

    proptest! {
        #[test]
        fn eight_bytes_decide_and_no_fewer(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..20),
                proptest::sample::subsequence([GSS_REQUEST, SSL_REQUEST].concat(), 0..16),
            ],
            declined in any::<bool>(),
        ) {
            let turn = Turn::of(&bytes, declined);
            match bytes.len() {
                n @ 0..8 => prop_assert_eq!(turn, Parsed::More(8 - n)),
                _ => prop_assert_eq!(turn, Turn::of(&bytes[..8], declined)),
            }
        }
    }
}
