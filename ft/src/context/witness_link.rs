//! The engine's dealings with the witness: which one it is, which claim is pending, and whether its record is
//! as expected.

use std::io;
use std::time::Duration;

use ft_proto::witness::Claim;
use ft_proto::{Time, VmId, WitnessAnswer};
use pollux_api::status::WitnessStatus;

use super::inbox::{Message, Post};
use crate::claims::Pending;
use crate::platform::Platform;
use crate::witness::{AskWitness, WitnessAddress};

/// How often the record is looked at while the VM runs here.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The way to the witness, if there is one.
pub(crate) struct WitnessLink<W> {
    client: Option<W>,
    /// What it has not answered yet.
    claim: Option<Pending>,
    /// When its record is to be looked at; `None`: there is none, or nothing is known to be there.
    check_at: Option<Time>,
    /// It was found lost the last time.
    lost: bool,
}

impl<W: AskWitness> WitnessLink<W> {
    /// `on_record`: the VM is known to a witness.
    pub(crate) fn new(client: Option<W>, on_record: bool, now: Time) -> Self {
        let check_at = (client.is_some() && on_record).then_some(now);
        Self { client, claim: None, check_at, lost: false }
    }

    pub(crate) fn client(&self) -> Option<&W> {
        self.client.as_ref()
    }

    /// This one is asked from now on, or nobody.
    pub(crate) fn use_address(
        &mut self,
        address: Option<&WitnessAddress>,
        start: impl FnOnce(&WitnessAddress) -> io::Result<W>,
    ) -> io::Result<()> {
        if self.client.as_ref().map(W::address) != address {
            self.client = address.map(start).transpose()?;
        }
        Ok(())
    }

    /// The VM is on record. Returns whether there is a witness.
    pub(crate) fn registered(&mut self, now: Time) -> bool {
        if self.client.is_some() {
            self.check_at.get_or_insert(now);
        }
        self.client.is_some()
    }

    /// Has a claim judged. The answer comes as a message.
    pub(super) fn ask<P: Platform>(&mut self, vm: VmId, claim: Claim, now: Time, post: &Post<P>) {
        if let Some(client) = &self.client {
            self.claim = Some(Pending::asked(self.claim.take(), claim, now));
            let post = post.clone();
            client.ask(vm, claim, move |answer| post.send(Message::Witness(answer)));
        }
    }

    /// It was judged, or could not be.
    pub(crate) fn answered(&mut self, answer: &WitnessAnswer) {
        self.claim = self.claim.take().and_then(|claim| claim.answered(answer));
    }

    /// What has not been answered yet.
    pub(super) fn claim(&self) -> Option<&Pending> {
        self.claim.as_ref()
    }

    pub(super) fn check_due(&self) -> Option<Time> {
        self.check_at.filter(|_| self.client.is_some())
    }

    /// Has the record read. It comes as a message.
    pub(super) fn check<P: Platform>(&mut self, now: Time, post: &Post<P>) {
        if let Some(client) = &self.client {
            self.check_at = Some(now + CHECK_INTERVAL);
            let post = post.clone();
            client.read(move |record| post.send(Message::RecordRead(record)));
        }
    }

    /// There is no record of this VM any more. Returns whether that is news.
    pub(super) fn lose_record(&mut self) -> bool {
        !std::mem::replace(&mut self.lost, true)
    }

    /// There is one.
    pub(super) fn find_record(&mut self) {
        self.lost = false;
    }

    /// Whether it would be of no use now: it does not answer, or has no record.
    pub(super) fn is_lost(&self) -> bool {
        self.lost || self.status().is_some_and(|status| status.answered == Some(false))
    }

    /// For status.
    pub(super) fn status(&self) -> Option<WitnessStatus> {
        self.client.as_ref().map(W::status)
    }

    /// The engine ends: waits, within reason, until everything is asked.
    pub(crate) fn finish(&self) {
        if let Some(client) = &self.client {
            client.finish();
        }
    }
}
