// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// A person who wants to know why two nodes don't reach each other needs the view of both. So a
// node can be asked how it sees the one that asks. The question is a random number, and the
// answer repeats it; as the node has signed the answer, none that sends it on can change it:
//
//	number 8 | signature 64 | view in CBOR

// Question is that of another node: how does this one see it?
type Question struct {
	From   mesh.ID // a claim: whoever it is, it gets only our view of that node
	number [questionLen]byte
}

const (
	questionLen  = 8
	answerHeader = questionLen + ed25519.SignatureSize
	// maxQuestions is how many questions wait to be answered: it takes up to a second each.
	maxQuestions = 16
	// askAgain is when a question or its answer counts as lost. It is longer than an answer takes.
	askAgain = 2 * time.Second
)

// Questions delivers the questions of other nodes, also those that come twice. What is not read in time is
// dropped.
func (g *Gossip) Questions() <-chan Question { return g.questions }

// Answer sends this node's view to the node that has asked. Problems for which the packet has no room
// are left out.
func (g *Gossip) Answer(q Question, v mesh.PeerView) error {
	v = v.Printable()
	content, err := encoding.Marshal(v)
	for err == nil && len(content) > maxLetter[kindAnswer]-answerHeader && len(v.Problems) > 0 {
		v.Problems = v.Problems[:len(v.Problems)-1]
		content, err = encoding.Marshal(v)
	}
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	signature := ed25519.Sign(g.identity, g.signedAnswer(q.From, q.number[:], content))
	if err := g.sendLetter(kindAnswer, q.From, slices.Concat(q.number[:], signature, content)); err != nil {
		return fmt.Errorf("answer %w", err)
	}
	return nil
}

// signedAnswer returns what the signature of an answer covers.
func (g *Gossip) signedAnswer(asker mesh.ID, number, content []byte) []byte {
	b := append([]byte("meshd answer v1\x00"), g.name...)
	b = append(append(b, 0), asker[:]...)
	return append(append(b, number...), content...)
}

// ErrNoAnswer is wrapped by the error of Ask if the node did not answer.
var ErrNoAnswer = errors.New("no answer: its packets or ours get lost, or it runs a version that can't be asked")

// Ask asks another node how it sees this one, every two seconds until it answers or ctx ends. It must
// be a node with a record.
func (g *Gossip) Ask(ctx context.Context, id mesh.ID) (mesh.PeerView, error) {
	var number [questionLen]byte
	if _, err := io.ReadFull(g.transport.random, number[:]); err != nil {
		return mesh.PeerView{}, fmt.Errorf("ask %v: %w", id, err)
	}
	answer := make(chan mesh.PeerView, 1)
	g.mu.Lock()
	g.asked[number] = asked{id, answer}
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.asked, number)
	}()
	again := time.NewTicker(askAgain)
	defer again.Stop()
	for {
		if err := g.sendLetter(kindQuestion, id, number[:]); err != nil {
			return mesh.PeerView{}, fmt.Errorf("ask %w", err)
		}
		select {
		case v := <-answer:
			return v, nil
		case <-again.C:
		case <-ctx.Done():
			return mesh.PeerView{}, fmt.Errorf("ask %v: %w", id, ErrNoAnswer)
		}
	}
}

// asked is a question of ours that waits for its answer.
type asked struct {
	of     mesh.ID
	answer chan<- mesh.PeerView // has room for one
}

// takeAnswer delivers an answer to the one who has asked, if the node that was asked has signed it.
func (g *Gossip) takeAnswer(from mesh.ID, content []byte) {
	if len(content) < answerHeader {
		g.counters.add("packet-content")
		return
	}
	number, signature, view := content[:questionLen], content[questionLen:answerHeader], content[answerHeader:]
	g.mu.Lock()
	waiting, ok := g.asked[[questionLen]byte(number)]
	record, known := g.store.objects[recordKey(from)]
	g.mu.Unlock()
	if !ok || waiting.of != from || !known {
		return // it is late, or a second one
	}
	if !ed25519.Verify(record.body.author(), g.signedAnswer(g.self, number, view), signature) {
		g.counters.add("packet-content")
		return
	}
	v, err := decodeView(view)
	if err != nil {
		g.counters.add("packet-content")
		return
	}
	trySend(waiting.answer, v)
}

func decodeView(b []byte) (mesh.PeerView, error) {
	var v mesh.PeerView
	if err := decoding.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("decode view: %w", err)
	}
	return v.Printable(), nil
}
