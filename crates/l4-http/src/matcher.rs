//! The matcher `http`.

use std::fmt;

use l4_core::config::ModuleMap;
use l4_core::schema::MapOf;
use l4_core::{Cost, Keys, Matcher, MatcherModule, Parsed, Provision, Rejected, Verdict, View};
use schemars::JsonSchema;
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};

use crate::HttpHead;
use crate::request_match::{Request, RequestMatchers, RequestSets};

/// Matches connections that begin with an HTTP request that one of the sets holds for; without sets any request.
pub struct MatchHttp {
    sets: RequestSets,
}

/// A list of sets of request matchers, for example `[{"host": ["a.example"], "path": ["/api/*"]}]`. A request matches if
/// one of the sets holds, and a set holds if all its members do. `[]` matches every HTTP request.
///
/// Understood are HTTP/1 and HTTP/2 with prior knowledge, in the clear or behind the `tls` handler. Only the first
/// request of a connection is looked at, up to the end of its header fields.
#[derive(JsonSchema)]
pub struct HttpConfig(
    #[schemars(with = "Vec<Option<MapOf<RequestMatchers>>>")] Vec<Option<ModuleMap>>,
);

impl<'de> Deserialize<'de> for HttpConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sets;

        impl<'de> Visitor<'de> for Sets {
            type Value = HttpConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a list of matcher sets such as [{\"host\": [\"a.example\"]}], or [] for any HTTP request",
                )
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<HttpConfig, A::Error> {
                let mut sets = Vec::new();
                while let Some(set) = items.next_element()? {
                    sets.push(set);
                }
                Ok(HttpConfig(sets))
            }
        }

        deserializer.deserialize_seq(Sets)
    }
}

impl Matcher for MatchHttp {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        let head = match view.fact::<HttpHead>() {
            Parsed::Done(head) => head,
            Parsed::Not => return Verdict::No,
            Parsed::More(n) => return Verdict::More(n),
        };
        if self.sets.is_empty() {
            return Verdict::Match;
        }
        let mut request = Request::new(head, view);
        if !self.sets.any(&mut request) {
            return Verdict::No;
        }
        for capture in request.into_captures() {
            view.capture(capture);
        }
        Verdict::Match
    }

    fn cost(&self) -> Cost {
        self.sets.cost()
    }

    fn keys(&self) -> Option<Keys> {
        self.sets.keys()
    }
}

impl MatcherModule for MatchHttp {
    const NAME: &'static str = "http";
    type Config = HttpConfig;

    fn provision(config: HttpConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let sets = RequestSets::provision(&config.0, cx)?;
        Ok(Self { sets })
    }
}
