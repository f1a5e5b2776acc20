// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/meshd/meshd/internal/control"
)

// finding is whether two nodes reach each other, and if not, why.
type finding struct {
	Node   string `json:"node"`
	OK     bool   `json:"ok"`
	Text   string `json:"text"`   // one sentence
	Advice string `json:"advice"` // what to do about it
}

// explainRoute explains what a ping to a node, and the status after it, say of the way there and back.
func explainRoute(s control.Status, p control.Ping) finding {
	peer, _ := peerNamed(s, p.Node)
	e := explanation{s, p, peer}
	for _, explain := range []func() (finding, bool){
		e.dead, e.problemHere, e.unrouted, e.silentHop, e.problemThere, e.losing, e.detour,
	} {
		if f, ok := explain(); ok {
			f.Node = p.Node
			return f
		}
	}
	return finding{
		Node: p.Node, OK: true, Text: fmt.Sprintf("%s answers in %s by the route %v; %s.", p.Node, roundTrip(e.last().RTT), peer.Route, e.back()),
		Advice: "if a pod or a Service does not answer, look at the pod itself, and at kubectl get networkpolicy -A",
	}
}

// peerNamed returns the other node of a name.
func peerNamed(s control.Status, name string) (control.Peer, bool) {
	for _, p := range s.Peers {
		if p.Name == name {
			return p, true
		}
	}
	return control.Peer{}, false
}

// explanation is what is known. Each of its methods that return a finding returns false if it finds nothing wrong.
type explanation struct {
	status control.Status
	ping   control.Ping
	peer   control.Peer
}

// last returns the results of the node itself.
func (e explanation) last() control.Hop { return e.ping.Hops[len(e.ping.Hops)-1] }

func (e explanation) dead() (finding, bool) {
	if e.peer.Alive || e.ping.Back != nil || e.last().Answered > 0 {
		return finding{}, false
	}
	since := ""
	if !e.peer.LastSeen.IsZero() {
		since = " since " + e.peer.LastSeen.Format(time.DateTime) + " UTC"
	}
	return finding{
		Text:   fmt.Sprintf("%s is not alive: no node has heard it%s.", e.peer.Name, since),
		Advice: fmt.Sprintf("on %[1]s: systemctl status meshd, then sudo meshd check; if it is gone for good, here: sudo meshd forget %[1]s", e.peer.Name),
	}, true
}

func (e explanation) problemHere() (finding, bool) {
	for _, p := range e.status.Problems {
		if p.Node == e.peer.Name {
			return finding{Text: ended(p.Text), Advice: p.Advice}, true
		}
	}
	return finding{}, false
}

func (e explanation) unrouted() (finding, bool) {
	switch {
	case len(e.status.Node.Overlay) == 0:
		return finding{Text: "This node has no overlay address yet.", Advice: "see meshd status"}, true
	case len(e.peer.Overlay) == 0:
		return finding{Text: fmt.Sprintf("There is no route to %s now.", e.peer.Name), Advice: "see meshd status, here and there"}, true
	}
	return finding{}, false
}

// silentHop finds the first node on the way that answers nothing.
func (e explanation) silentHop() (finding, bool) {
	for i, h := range e.ping.Hops {
		if h.Answered > 0 {
			continue
		}
		if i > 0 {
			before := e.ping.Hops[i-1].Name
			return finding{
				Text:   fmt.Sprintf("%s answers, and %s behind it does not; %s.", before, h.Name, e.back()),
				Advice: fmt.Sprintf("on %s: sudo meshd why %s", before, h.Name),
			}, true
		}
		hop, _ := peerNamed(e.status, h.Name)
		if hop.Path.Works() == control.PathNone {
			return e.noPath(hop), true
		}
		return e.unanswered(hop), true
	}
	return finding{}, false
}

// seenBy returns how a node sees this one, if it is the one that was asked and has answered.
func (e explanation) seenBy(name string) (control.PeerView, bool) {
	if e.ping.Back == nil || name != e.peer.Name {
		return control.PeerView{}, false
	}
	return *e.ping.Back, true
}

// noPath explains why no tunnel's packets pass.
func (e explanation) noPath(hop control.Peer) finding {
	text := fmt.Sprintf("No packets pass between this node and %s", hop.Name)
	var tried []string
	for _, t := range hop.Path.Tried {
		tried = append(tried, pathWords(t.Kind, t.Addr.String(), t.Relay))
	}
	if len(tried) > 0 {
		text += "; tried: " + strings.Join(tried, ", ")
	}
	if hop.Path.NotProbed != "" {
		text += "; " + hop.Path.NotProbed
	}
	if v, ok := e.seenBy(hop.Name); ok && v.Proved {
		text += fmt.Sprintf("; for %s its path works, so what it sends gets lost on the way here", hop.Name)
	}
	return finding{
		Text: ended(text),
		Advice: fmt.Sprintf("open UDP port %d of one of them to the other: sudo meshd netcheck on both shows what is closed; or have a node that both reach serve as relay: node.relay",
			e.status.Device.ListenPort),
	}
}

// unanswered explains echo requests without an answer although the tunnel works, or none is needed.
func (e explanation) unanswered(hop control.Peer) finding {
	if v, ok := e.seenBy(hop.Name); ok && v.Answered {
		return finding{
			Text:   fmt.Sprintf("This node answers %s, and %s does not answer this node: a firewall there drops what others begin.", hop.Name, hop.Name),
			Advice: fmt.Sprintf("on %s: sudo meshd check", hop.Name),
		}
	}
	text := fmt.Sprintf("The tunnel to %s works, but it does not answer through it.", hop.Name)
	if hop.Route.IsLAN() {
		text = fmt.Sprintf("%s does not answer over the private network.", hop.Name)
	}
	return finding{Text: text, Advice: "run sudo meshd check on both: it names firewalls that drop the mesh's packets"}
}

func (e explanation) problemThere() (finding, bool) {
	if e.ping.Back == nil || len(e.ping.Back.Problems) == 0 {
		return finding{}, false
	}
	p := e.ping.Back.Problems[0]
	return finding{Text: fmt.Sprintf("%s answers, and reports of this node: %s", e.peer.Name, ended(p.Text)), Advice: p.Advice}, true
}

func (e explanation) losing() (finding, bool) {
	if e.last().Answered == e.ping.Sent {
		return finding{}, false
	}
	return finding{
		Text:   fmt.Sprintf("%s answers %d of %d echo requests; %s.", e.peer.Name, e.last().Answered, e.ping.Sent, e.back()),
		Advice: "packets get lost: see LOSS in meshd status, here and there, and whether the line is full",
	}, true
}

// detour explains why a path that works is not straight.
func (e explanation) detour() (finding, bool) {
	p := e.peer.Path
	if kind := p.Works(); kind != control.PathRelayed && kind != control.PathTCP {
		return finding{}, false
	}
	return finding{
		OK: true, Text: fmt.Sprintf("%s answers in %s, %s, since no straight path works; %s.", e.peer.Name, roundTrip(e.last().RTT), pathWords(p.Kind, p.Addr.String(), p.Relay), e.back()),
		Advice: fmt.Sprintf("for a straight path, open UDP port %d of one of them: sudo meshd netcheck on both shows what is closed", e.status.Device.ListenPort),
	}, true
}

// back says how the other node sees this one.
func (e explanation) back() string { return backWords(e.ping) }

func backWords(p control.Ping) string {
	if p.Back == nil {
		return fmt.Sprintf("%s did not say how it sees this node: %s", p.Node, p.NoBack)
	}
	v := *p.Back
	words := "no answer from here"
	if v.Answered {
		words = "an answer from here in " + roundTrip(control.Milliseconds(v.RTT*float64(time.Millisecond)))
	}
	switch {
	case v.Path != "" && v.Proved:
		words += ", " + pathWords(control.PathKind(v.Path), v.Addr.String(), v.Relay)
	case v.Path != "":
		words += ", and no path that works"
	case v.Route != "":
		words += " by the route " + v.Route
	}
	if !v.Alive {
		words += ", and takes this node for dead"
	}
	return p.Node + " has " + words
}

// pathWords names a path.
func pathWords(kind control.PathKind, addr, relay string) string {
	if relay != "" {
		return fmt.Sprintf("%s through %s", kind, relay)
	}
	return fmt.Sprintf("%s at %s", kind, addr)
}

// ended ends a problem's text with a full stop. It may begin with a node's name, and so stays in small letters.
func ended(text string) string { return strings.TrimRight(text, ". ") + "." }
