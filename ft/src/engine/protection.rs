//! Getting a standby: which hosts are asked, when, and on whose behalf. Ends with a session, or with every
//! reason why there is none.

use std::io;

use ft_proto::{State, Time};
use pollux_api::event::EventName;
use pollux_api::status::SearchStatus;
use pollux_api::{Blocker, Refused};
use serde_json::json;

use crate::context::Context;
use crate::context::inbox::{Message, Reply};
use crate::options::ProtectOptions;
use crate::peers::application::{Applicant, Introduction, Mandate, Unopened};
use crate::peers::search::Search;
use crate::platform::{OpenedOn, Platform};

/// What is known of it.
pub(super) struct Protection {
    search: Search,
    /// A thread is asking.
    opening: bool,
    /// Whom `ft resume` asks first, while protection is suspended.
    suspended: Option<ProtectOptions>,
    /// Of the thread that asks.
    mandate: Mandate,
}

impl Protection {
    pub(super) fn new(search: Search) -> Self {
        Self { search, opening: false, suspended: None, mandate: Mandate::default() }
    }

    /// The VM runs: a standby is looked for from now on.
    pub(super) fn vm_started(&mut self) {
        self.search.switch(true);
    }

    /// The VM has ended: a thread that still asks claims nothing more.
    pub(super) fn vm_ended(&mut self) {
        self.search.switch(false);
        self.mandate.end();
    }

    /// The API wants protection: find out whether it can be had, on a thread that may wait.
    pub(super) fn protect<P: Platform>(&mut self, cx: &mut Context<P>, options: Option<ProtectOptions>, reply: Reply) {
        if !self.is_open(cx) {
            let already = Refused::Already(cx.state_name(self.is_suspended(cx)));
            return cx.answer(reply, Err(if self.opening { Refused::BeingProtected } else { already }));
        }
        self.suspended = None;
        self.search.switch(true);
        let peers = options.map_or_else(|| self.search.peers().to_vec(), |options| vec![options]);
        if peers.is_empty() {
            return cx.answer(reply, Err(Refused::NoPeers));
        }
        self.ask_peers(cx, peers, reply);
    }

    /// Ends a suspension: asks the standby that was there before, then the configured ones.
    pub(super) fn resume<P: Platform>(&mut self, cx: &mut Context<P>, reply: Reply) {
        let Some(first) = self.suspended.clone().filter(|_| self.is_open(cx)) else {
            let state = cx.state_name(self.is_suspended(cx));
            return cx.answer(reply, Err(Refused::NotSuspended(state)));
        };
        let others = self.search.peers().iter().filter(|other| other.peer != first.peer).cloned();
        let peers = std::iter::once(first.clone()).chain(others).collect();
        self.ask_peers(cx, peers, reply);
    }

    /// Ends protection for good. Returns whether a suspension or search ends with it.
    pub(super) fn stop(&mut self) -> bool {
        let ends_something = self.suspended.take().is_some() || self.search.due().is_some();
        self.search.switch(false);
        ends_something
    }

    /// Ends it for a while, after which this standby is asked first.
    pub(super) fn suspend(&mut self, options: ProtectOptions) {
        self.suspended = Some(options);
        self.search.switch(false);
    }

    /// Whether the VM runs alone because an operator wants it to, for a while.
    pub(super) fn is_suspended<P: Platform>(&self, cx: &Context<P>) -> bool {
        self.will_resume() && cx.state() == State::Solo
    }

    /// Whether an operator will want protection again.
    pub(super) fn will_resume(&self) -> bool {
        self.suspended.is_some()
    }

    /// Whether another session will be opened.
    pub(super) fn goes_on(&self) -> bool {
        self.will_resume() || self.search.due().is_some()
    }

    /// Whether a session may be opened.
    fn is_open<P: Platform>(&self, cx: &Context<P>) -> bool {
        cx.state() == State::Solo && !self.opening
    }

    /// When to ask the configured peers.
    pub(super) fn due<P: Platform>(&self, cx: &Context<P>) -> Option<Time> {
        self.search.due().filter(|_| self.is_open(cx))
    }

    /// Asks the configured peers if it is time for that.
    pub(super) fn look_for_standby<P: Platform>(&mut self, cx: &mut Context<P>) {
        let now = cx.now();
        if self.due(cx).is_none_or(|due| due > now) {
            return;
        }
        if let Err(error) = self.open(cx, self.search.peers().to_vec(), None) {
            self.not_found(cx, &Blocker::HostExhausted { reason: error.to_string() }.into());
        }
    }

    /// Has `peers` asked for somebody who waits.
    fn ask_peers<P: Platform>(&mut self, cx: &mut Context<P>, peers: Vec<ProtectOptions>, reply: Reply) {
        if let Err(error) = self.open(cx, peers, Some(reply.clone())) {
            cx.answer(reply, Err(Refused::NoThread(error.to_string())));
        }
    }

    /// Has `peers` asked one after the other.
    fn open<P: Platform>(
        &mut self,
        cx: &mut Context<P>,
        peers: Vec<ProtectOptions>,
        reply: Option<Reply>,
    ) -> io::Result<()> {
        // From here on, also when no session comes of it: the record that the connecting thread makes is ours
        // to end.
        cx.use_witness(peers.first().and_then(|options| options.witness.as_ref()))?;
        let identity = *cx.identity();
        let applicant = Applicant {
            introduction: Introduction {
                node: cx.node().id(),
                vm: identity.vm().ok_or_else(|| io::Error::other("the VM has no identity"))?,
                previous: identity.proof(),
                shape: cx.machine().shape(),
                took_over: identity.took_over(),
                base: cx.machine().base(),
            },
            term: cx.term(),
            first: identity.is_first(),
            blockers: cx.machine().blockers(),
            witness: cx.witness().client().cloned(),
            mandate: self.mandate.clone(),
            brief: reply.is_none(),
        };
        let post = cx.post();
        let done = move |opened: Result<OpenedOn<P>, Unopened>| post.send(Message::Opened(opened.map(Box::new), reply));
        cx.platform().open_session(applicant, peers, done)?;
        self.opening = true;
        Ok(())
    }

    /// The connecting thread is through. Returns whether anybody still wants what it brings; `asked`:
    /// somebody waits for it.
    pub(super) fn opened(&mut self, asked: bool) -> bool {
        self.opening = false;
        !self.mandate.is_over() && (asked || self.search.is_on())
    }

    /// A session has begun.
    pub(super) fn begun(&mut self) {
        if self.suspended.take().is_some() {
            // What ended the search is over.
            self.search.switch(true);
        }
        self.search.accepted();
    }

    /// The VM is protected.
    pub(super) fn found(&mut self) {
        self.search.found();
    }

    /// A session is over. If the VM was never protected by it that is a failure like any other.
    pub(super) fn session_ended<P: Platform>(&mut self, cx: &mut Context<P>, reason: &str) {
        if self.search.session_ended() && self.search.is_on() {
            cx.reporter().failed(reason.to_owned());
            self.not_found(cx, &Blocker::SessionFailed { reason: reason.to_owned() }.into());
        }
    }

    /// Nobody accepts.
    pub(super) fn not_found<P: Platform>(&mut self, cx: &mut Context<P>, why: &Unopened) {
        let news = self.search.failed(why, cx.now());
        if news && !self.search.peers().is_empty() {
            cx.note(EventName::StandbyUnavailable, json!({ "reasons": why.sentences() }));
            cx.reporter().publish_soon();
        }
    }

    /// For status.
    pub(super) fn status(&self) -> Option<SearchStatus> {
        self.search.status()
    }
}
