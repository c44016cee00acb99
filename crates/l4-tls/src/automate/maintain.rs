//! Obtaining and renewing: one task for each managed name.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use l4_core::Lease;
use rustls::crypto::CryptoProvider;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::policy::Rules;
use super::slot::Making;
use super::stored::Place;
use super::{CertificateRequest, IssueError, Issued, Slot, Subject};
use crate::Certificate;
use crate::keys::PrivateKey;
use crate::pki::now;
use crate::pki::sign::Validity;

/// A name whose certificate is made and renewed here.
pub(crate) struct Managed {
    subject: Subject,
    rules: Arc<Rules>,
    slot: Arc<Slot>,
    /// How often to look whether it is time.
    interval: Duration,
    provider: Arc<CryptoProvider>,
}

impl Managed {
    /// Takes the certificate from storage if it is there; makes none.
    pub(crate) fn new(
        subject: Subject,
        rules: Arc<Rules>,
        interval: Duration,
        provider: Arc<CryptoProvider>,
    ) -> Self {
        let issuers: Vec<&str> = rules.issuers.iter().map(|issuer| issuer.key()).collect();
        let folder = rules.storage.describe("");
        let slot = Slot::of(format!(
            "{folder}\n{}\n{}",
            issuers.join("\n"),
            subject.as_str()
        ));
        let this = Self {
            subject,
            rules,
            slot,
            interval,
            provider,
        };
        // What cannot be read now is said by the task that makes it anew.
        if this.slot.certificate().is_none()
            && let Ok(Some(stored)) = this.stored()
        {
            this.slot.put(stored);
        }
        this
    }

    pub(crate) fn subject(&self) -> &Subject {
        &self.subject
    }

    pub(crate) fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    /// Has a certificate made if there is none, and renewed when it is time, without end.
    pub(crate) async fn keep(self: Arc<Self>) {
        // Handshakes wait for the first attempt.
        let mut making = Some(self.slot.begin());
        loop {
            if self.is_due(now()) {
                self.obtain(&mut making).await;
            }
            making = None;
            tokio::time::sleep(self.interval).await;
        }
    }

    fn is_due(&self, now: i64) -> bool {
        self.slot
            .certificate()
            .is_none_or(|certificate| self.is_time(certificate.validity(), now))
    }

    fn is_time(&self, validity: Validity, now: i64) -> bool {
        is_due(
            validity,
            now,
            self.rules.renewal_window_ratio,
            self.interval,
        )
    }

    /// Whether a certificate that was found in storage makes another one unnecessary.
    fn suffices(&self, stored: &Certificate, now: i64) -> bool {
        let newer = self
            .slot
            .certificate()
            .is_some_and(|own| stored.validity().not_after > own.validity().not_after);
        // A certificate of a few seconds is always due; if somebody has just renewed it, so be it.
        (newer && stored.validity().left(now) > 0.0) || !self.is_time(stored.validity(), now)
    }

    /// Tries until there is a certificate. The lock is held over the waits: another instance would hardly do better, and
    /// public issuers count attempts.
    async fn obtain(self: &Arc<Self>, making: &mut Option<Making>) {
        let (identifier, start) = (self.subject.as_str(), Instant::now());
        let mut lease = None;
        for attempt in 0.. {
            let error = match self.attempt(&mut lease).await {
                Ok(()) => break,
                Err(error) => error,
            };
            // From here on handshakes would wait in vain.
            *making = None;
            let (elapsed, wait) = (start.elapsed(), retry_after(attempt));
            if elapsed >= GIVE_UP_AFTER {
                error!(target: "tls.obtain", identifier, %error, "giving up");
                break;
            }
            error!(
                target: "tls.obtain", identifier, %error, attempt = attempt + 1, retrying_in = ?wait, ?elapsed,
                max_duration = ?GIVE_UP_AFTER, "will retry"
            );
            tokio::time::sleep(wait).await;
        }
        if lease.is_some() {
            info!(target: "tls.obtain", identifier, "releasing lock");
        }
    }

    async fn attempt(
        self: &Arc<Self>,
        lease: &mut Option<Arc<dyn Lease>>,
    ) -> Result<(), IssueError> {
        // A process with ten thousand names must not do them all at once.
        let mut permit = Some(JOBS.acquire().await?);
        let identifier = self.subject.as_str();
        // Another instance may have renewed it.
        if lease.is_none() && self.adopt_stored().await {
            return Ok(());
        }
        if lease.is_none() {
            info!(target: "tls.obtain", identifier, "acquiring lock");
            let name = format!("issue_cert_{identifier}");
            let mut locking = self.rules.storage.lock(&name);
            let locked = match tokio::time::timeout(SOON, &mut locking).await {
                Ok(locked) => locked,
                Err(_) => {
                    // Another instance has it, which may take hours; other names go first. Not always: the lock of each
                    // name that waits for its turn would have to be kept alive.
                    permit = None;
                    locking.await
                }
            };
            *lease = Some(Arc::from(
                locked.map_err(|error| format!("lock {name}: {error}"))?,
            ));
            info!(target: "tls.obtain", identifier, "lock acquired");
        }
        let _permit = match permit {
            Some(permit) => permit,
            None => JOBS.acquire().await?,
        };
        // Or it has done so while we waited.
        if self.adopt_stored().await {
            return Ok(());
        }
        let renewal = self.slot.certificate().is_some();
        info!(target: "tls.obtain", identifier, renewal, "obtaining certificate");
        let key_type = self.rules.key_type;
        let key = blocking(move || key_type.generate()).await??;
        let request = CertificateRequest {
            subject: self.subject.clone(),
            key,
        };
        let (issuer, issued) = self.issue(&request).await?;
        let lease = lease.clone();
        self.store(issuer.clone(), request.key, issued, lease)
            .await?;
        info!(target: "tls.obtain", identifier, issuer, renewal, "certificate obtained successfully");
        Ok(())
    }

    /// Asks the issuers one after the other.
    async fn issue(&self, request: &CertificateRequest) -> Result<(String, Issued), IssueError> {
        let mut last: IssueError = "the policy has no issuer".into();
        for issuer in &self.rules.issuers {
            match issuer.issue(request).await {
                Ok(issued) => return Ok((issuer.key().to_owned(), issued)),
                Err(error) => {
                    warn!(
                        target: "tls.obtain", identifier = self.subject.as_str(), issuer = issuer.key(), %error,
                        "could not get certificate from issuer"
                    );
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// Stores a new certificate and serves it. The lock is held to the end of it, whether anybody waits for that or not.
    async fn store(
        self: &Arc<Self>,
        issuer: String,
        key: PrivateKey,
        issued: Issued,
        lease: Option<Arc<dyn Lease>>,
    ) -> Result<(), IssueError> {
        let this = self.clone();
        let stored = blocking(move || {
            let _lease = lease;
            let place = Place::new(&issuer, &this.subject);
            let storage = &*this.rules.storage;
            place
                .store(&this.subject, key.pem(), &issued, storage)
                .map_err(|error| format!("storing the certificate: {error}"))?;
            match place.load(&this.subject, storage, &this.provider) {
                Ok(Some(certificate)) => {
                    this.slot.put(certificate);
                    Ok(())
                }
                Ok(None) => Err("the certificate is gone from storage".to_owned()),
                Err(error) => Err(format!("reading the certificate back: {error}")),
            }
        });
        Ok(stored.await??)
    }

    /// Serves the certificate in storage if it will do. What is wrong with one that will not is logged.
    async fn adopt_stored(self: &Arc<Self>) -> bool {
        let this = self.clone();
        let adopted = blocking(move || match this.stored() {
            Ok(Some(stored)) => {
                let suffices = this.suffices(&stored, now());
                if suffices || this.slot.certificate().is_none() {
                    this.slot.put(stored);
                }
                suffices
            }
            Ok(None) => false,
            Err(error) => {
                let identifier = this.subject.as_str();
                warn!(target: "tls.obtain", identifier, %error, "what is in storage cannot be used");
                false
            }
        });
        adopted.await.unwrap_or(false)
    }

    /// What is in storage: of several issuers, the certificate that was made last.
    fn stored(&self) -> io::Result<Option<Certificate>> {
        let mut newest: Option<Certificate> = None;
        let mut failure = None;
        for issuer in &self.rules.issuers {
            let place = Place::new(issuer.key(), &self.subject);
            match place.load(&self.subject, &*self.rules.storage, &self.provider) {
                Ok(Some(found)) => {
                    let start = |certificate: &Certificate| certificate.validity().not_before;
                    if newest
                        .as_ref()
                        .is_none_or(|known| start(&found) > start(known))
                    {
                        newest = Some(found);
                    }
                }
                Ok(None) => {}
                Err(error) => failure = Some(error),
            }
        }
        match (newest, failure) {
            (None, Some(error)) => Err(error),
            (newest, _) => Ok(newest),
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    tokio::task::spawn_blocking(work).await
}

/// Whether a certificate is to be renewed.
fn is_due(validity: Validity, now: i64, ratio: f64, interval: Duration) -> bool {
    let (left, life) = (validity.left(now), validity.life());
    // The last two: however the ratio is set, there is time for several attempts.
    left < life * ratio || left < life / 50.0 || left < 5.0 * interval.as_secs_f64()
}

/// How long to wait after so many attempts that failed, the first being number 0.
fn retry_after(attempt: usize) -> Duration {
    const MINUTES: [u64; 27] = [
        1, 2, 2, 5, 10, 10, 10, 20, 20, 20, 20, 30, 30, 30, 30, 30, 30, 60, 60, 60, 120, 120, 180,
        180, 360, 360, 360,
    ];
    Duration::from_secs(60 * MINUTES.get(attempt).copied().unwrap_or(360))
}

/// For how long to try.
const GIVE_UP_AFTER: Duration = Duration::from_secs(30 * 24 * 60 * 60);

const MOST_JOBS: u32 = 1000;
static JOBS: Semaphore = Semaphore::const_new(MOST_JOBS as usize);
/// A lock that is not there by then is somebody else's.
const SOON: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use l4_core::{BoxFuture, Storage};

    use super::*;
    use crate::automate::Issuer;
    use crate::keys::{KeyType, chain_pem};
    use crate::policy::provider;
    use crate::storage::stalled::{Event, Stalled};

    /// For tests that count on permits.
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    /// Has every certificate sign itself.
    struct SelfSigned;

    impl Issuer for SelfSigned {
        fn key(&self) -> &str {
            "self"
        }

        fn issue<'a>(
            &'a self,
            request: &'a CertificateRequest,
        ) -> BoxFuture<'a, Result<Issued, IssueError>> {
            Box::pin(async move {
                let name = request.subject.as_str().to_owned();
                let params = rcgen::CertificateParams::new([name])?;
                let made = params.self_signed(request.key.pair())?;
                Ok(Issued {
                    chain: chain_pem([made.der()]),
                    data: serde_json::Value::Null,
                })
            })
        }
    }

    fn managed(name: &str, storage: Arc<dyn Storage>) -> Arc<Managed> {
        let rules = Rules {
            issuers: vec![Arc::new(SelfSigned)],
            key_type: KeyType::P256,
            renewal_window_ratio: 0.3,
            storage,
        };
        Arc::new(Managed::new(
            Subject::parse(name).unwrap(),
            Arc::new(rules),
            Duration::from_secs(600),
            Arc::new(provider()),
        ))
    }

    #[tokio::test]
    async fn a_name_stays_locked_until_nothing_is_written_any_more() {
        let _alone = ALONE.lock().await;
        let dir = tempfile::tempdir().unwrap();
        let (storage, mut events) = Stalled::new(dir.path());
        let name = managed("a.internal", storage.clone());
        let keeping = tokio::spawn(name.clone().keep());
        assert_eq!(events.recv().await, Some(Event::Writing));
        keeping.abort();
        assert!(keeping.await.unwrap_err().is_cancelled());
        assert!(events.try_recv().is_err(), "unlocked while it writes");
        storage.go_on();
        while events.recv().await != Some(Event::Unlocked) {}
        let stored = name.stored().unwrap();
        assert!(stored.is_some(), "everything was written by then");
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_another_instance_works_on_does_not_keep_others_waiting() {
        let _alone = ALONE.lock().await;
        let (theirs, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        // There is room for one.
        let _others = JOBS.acquire_many(MOST_JOBS - 1).await.unwrap();
        let (storage, mut events) = Stalled::taken(theirs.path());
        let waiting = tokio::spawn(managed("b.internal", storage).keep());
        assert_eq!(events.recv().await, Some(Event::Locking));
        let (storage, _events) = Stalled::new(ours.path());
        storage.go_on();
        let mut lease = None;
        let made = managed("c.internal", storage);
        let made = tokio::time::timeout(Duration::from_secs(60), made.attempt(&mut lease));
        made.await.unwrap().unwrap();
        waiting.abort();
    }

    const HOUR: i64 = 60 * 60;

    /// When, in hours after its start, a certificate of so many hours becomes due.
    fn due_after(hours: i64, ratio: f64, interval: Duration) -> f64 {
        let start = 1_780_000_000;
        let validity = Validity {
            not_before: start,
            not_after: start + hours * HOUR - 1,
        };
        let due = (0..=hours * HOUR).find(|after| is_due(validity, start + after, ratio, interval));
        due.unwrap() as f64 / HOUR as f64
    }

    #[test]
    fn certificates_are_renewed_while_there_is_time() {
        let ten_minutes = Duration::from_secs(600);
        let near =
            |due: f64, expected: f64| assert!((due - expected).abs() < 0.001, "{due} {expected}");
        near(due_after(12, 1.0 / 3.0, ten_minutes), 8.0);
        near(due_after(90 * 24, 1.0 / 3.0, ten_minutes), 60.0 * 24.0);
        near(due_after(10, 0.5, ten_minutes), 5.0);
        // However small the ratio is: a fiftieth of the lifetime, or five looks.
        near(due_after(100, 0.0001, ten_minutes), 98.0);
        near(due_after(10, 0.0001, ten_minutes), 10.0 - 50.0 / 60.0);
        // One that does not last for five looks is always due.
        assert_eq!(due_after(1, 0.5, Duration::from_secs(3600)), 0.0);
    }

    #[test]
    fn a_certificate_that_has_ended_is_due() {
        let validity = Validity {
            not_before: 1000,
            not_after: 2000,
        };
        assert!(is_due(validity, 3000, 0.0001, Duration::from_secs(1)));
        assert!(!is_due(validity, 0, 0.5, Duration::from_secs(1)));
    }

    #[test]
    fn attempts_become_rarer() {
        let minutes = |attempt| retry_after(attempt).as_secs() / 60;
        assert_eq!([0, 1, 2, 3, 4].map(minutes), [1, 2, 2, 5, 10]);
        assert_eq!(
            [10, 11, 16, 17, 20, 22, 24, 1000].map(minutes),
            [20, 30, 30, 60, 120, 180, 360, 360]
        );
    }
}
