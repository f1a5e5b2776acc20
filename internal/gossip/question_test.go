// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshd/meshd/internal/mesh"
)

// Two nodes behind NAT ask each other, through the nodes that reach both.
func TestAskBetweenNATs(t *testing.T) {
	t.Parallel()
	network := &natNetwork{lifetime: 30 * time.Second, behind: make(map[uint16]bool), sent: make(map[flow]time.Time)}
	nodes := []*testNode{network.start(t, 0, 1, func(*Options) {})}
	for n := 1; n < 3; n++ {
		nodes = append(nodes, network.start(t, n, 1, joining(nodes[0])))
	}
	eventually(t, "all know all", nodes, func(v mesh.View) bool { return len(v.Records) == len(nodes) })
	asker, asked := nodes[1], nodes[2]
	want := mesh.PeerView{Version: "1.2.3", Alive: true, Route: "tunnel", Path: "direct", Proved: true, Loss: 0.25, Answered: true, RTT: 12.5, Problems: []mesh.Problem{
		{Kind: "silent", Node: "asker", Text: "it is silent", Advice: "see its log"},
	}}
	long := want
	long.Problems = []mesh.Problem{want.Problems[0], {Text: strings.Repeat("x", mesh.MaxText)}} // has no room in a packet
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	go func() {
		for {
			select {
			case q := <-asked.Questions():
				if err := asked.Answer(q, long); err != nil {
					t.Errorf("answer: %v", err)
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	got, err := asker.Ask(ctx, asked.self)
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); err != nil || diff != "" {
		t.Errorf("answer (-want +got, error %v):\n%s", err, diff)
	}
	if _, err := asker.Ask(ctx, asker.self); err == nil {
		t.Error("a node asks itself")
	}
	silent, stop := context.WithTimeout(ctx, time.Millisecond)
	defer stop()
	if _, err := asker.Ask(silent, nodes[0].self); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("a node that does not answer: got error %v, want %v", err, ErrNoAnswer)
	}
}

// Only the node that was asked can answer, and only the question that it was asked.
func TestHostileAnswers(t *testing.T) {
	now := time.Unix(1700000000, 0)
	g := withMembers(t, &now)
	number := [questionLen]byte{1, 2, 3}
	answer := make(chan mesh.PeerView, 1)
	g.asked[number] = asked{idOf(1), answer}
	view, err := encoding.Marshal(mesh.PeerView{Version: "1"})
	if err != nil {
		t.Fatal(err)
	}
	// said is an answer of a node to another one.
	said := func(n int, to mesh.ID, number [questionLen]byte, view []byte) []byte {
		signature := ed25519.Sign(identity(n), g.signedAnswer(to, number[:], view))
		return slices.Concat(number[:], signature, view)
	}
	for _, tt := range []struct {
		name    string
		from    mesh.ID
		content []byte
	}{
		{"of another node", idOf(2), said(2, g.self, number, view)},
		{"signed by another node", idOf(1), said(2, g.self, number, view)},
		{"to another node", idOf(1), said(1, idOf(2), number, view)},
		{"to another question", idOf(1), said(1, g.self, [questionLen]byte{9}, view)},
		{"number exchanged", idOf(1), slices.Concat(number[:], said(1, g.self, [questionLen]byte{9}, view)[questionLen:])},
		{"changed on the way", idOf(1), append(said(1, g.self, number, view), 0)},
		{"not CBOR", idOf(1), said(1, g.self, number, []byte("?"))},
		{"cut off", idOf(1), said(1, g.self, number, view)[:answerHeader-1]},
	} {
		g.handle(message{tt.from, kindAnswer, slices.Concat(tt.from[:], g.self[:], tt.content)})
		if len(answer) != 0 {
			t.Errorf("an answer %s is taken", tt.name)
			<-answer
		}
	}
	from := idOf(1)
	g.handle(message{from, kindAnswer, slices.Concat(from[:], g.self[:], said(1, g.self, number, view))})
	if len(answer) != 1 {
		t.Error("the answer is not taken")
	}
	g.handle(message{from, kindQuestion, slices.Concat(from[:], g.self[:], number[:questionLen-1])})
	if len(g.Questions()) != 0 {
		t.Error("a question that is cut off is delivered")
	}
}
