//! `http.matchers.path_regexp`

use l4_core::regexp::NamedExpression;
use l4_core::{Cost, Provision, Rejected};

use super::expression::ExpressionConfig;
use super::{Request, RequestMatch};
use crate::uri;

struct MatchPathRegexp(NamedExpression);

impl RequestMatch for MatchPathRegexp {
    fn matches(&self, request: &mut Request<'_, '_>) -> bool {
        let path = uri::clean(request.head().path(), true);
        match self.0.capture(&path) {
            Some(capture) => {
                request.capture(capture);
                true
            }
            None => false,
        }
    }

    fn cost(&self) -> Cost {
        Cost::Regex
    }
}

/// The expression is compared with the path, its escapes decoded, `.` and `..` resolved and repeated slashes merged.
pub(super) fn provision(
    config: ExpressionConfig,
    cx: &mut Provision<'_>,
) -> Result<Box<dyn RequestMatch>, Rejected> {
    Ok(Box::new(MatchPathRegexp(config.provision(cx)?)))
}
