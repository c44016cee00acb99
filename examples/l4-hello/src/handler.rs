use std::time::Duration;

use l4_core::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::Greeting;

/// Takes the greeting off the connection and answers it. The handlers behind get what follows.
///
/// The name is then the variable `hello.name`, so that others can use `{l4.vars.hello.name}`.
pub struct Answer {
    answer: Template,
    timeout: Option<Duration>,
}

/// Configuration of the handler `hello`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AnswerConfig {
    /// The line to answer, with placeholders, such as `"Hello {l4.vars.hello.name}"`. Default: no answer.
    #[serde(default)]
    answer: Option<At<String>>,
    /// How long to wait for the greeting. Default `"10s"`; 0 is without limit.
    #[serde(default)]
    timeout: Option<At<GoDuration>>,
}

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

impl HandlerModule for Answer {
    const NAME: &'static str = "hello";
    type Config = AnswerConfig;

    fn provision(config: AnswerConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let answer = match &config.answer {
            Some(answer) => cx.template(answer),
            None => cx.template_at("", cx.node()),
        };
        let timeout = cx.time_limit(config.timeout, DEFAULT_TIMEOUT);
        Ok(Self {
            answer: answer?,
            timeout: timeout?,
        })
    }
}

impl AsyncHandler for Answer {
    async fn handle(&self, mut conn: Connection, _: Rest<'_>) -> Result<Flow> {
        let greeting = match self.timeout {
            Some(limit) => tokio::time::timeout(limit, greeting(&mut conn))
                .await
                .map_err(|_| Error::client(Phase::Handshake, "no greeting came in time"))??,
            None => greeting(&mut conn).await?,
        };
        conn.consume(greeting.length);
        conn.set_var("hello.name", &greeting.name);
        let answer = conn.expand(&self.answer).into_owned();
        if !answer.is_empty() {
            conn.send(format!("{answer}\r\n").as_bytes()).await?;
        }
        Ok(Flow::Next(conn))
    }
}

/// Waits for the greeting, which a route without a matcher has not seen yet. No more than 72 bytes are kept.
async fn greeting(conn: &mut Connection) -> Result<Greeting> {
    loop {
        match Greeting::parse(conn.unread()) {
            Parsed::Done(greeting) => return Ok(greeting),
            Parsed::Not => return Err(Error::client(Phase::Handshake, "this is no greeting")),
            // A datagram is whole: what it lacks will not come.
            Parsed::More(_) if conn.is_datagram() && !conn.unread().is_empty() => {
                return Err(Error::client(Phase::Handshake, "the greeting is cut off"));
            }
            Parsed::More(_) => {}
        }
        if conn.fill().await? == Received::End {
            return Err(Error::client(
                Phase::Handshake,
                "the client left within its greeting",
            ));
        }
    }
}
