// SPDX-License-Identifier: Apache-2.0

//go:build hostile

package hostile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// meshd is the meshd under attack.
var meshd = os.Getenv("MESHD")

func TestMain(m *testing.M) {
	lab.Main()
	os.Exit(m.Run())
}

// Limits only distinguish slow from never.
const testLimit = 20 * time.Minute

// always is how much more than before a daemon may use after any attack: normal variation,
// of which the heap's is what is not collected yet, what still waits to be sent, and
// buffers of 64 KiB that userspace WireGuard keeps. Records and revocations of newcomers
// take some hundred bytes each.
var always = Usage{Descriptors: 10, Goroutines: 40, Heap: 8 << 20, RSS: 1 << 30, Disk: 16 << 10}

// during is how much more it may use during an attack, unless the attack sets it.
var during = Usage{Descriptors: 100, Goroutines: 300, Heap: 1 << 30, RSS: 96 << 20, Disk: 1 << 20}

// TestHostile runs all attacks on one node, one after the other, while its pod exchanges
// packets with one elsewhere. During each attack a newcomer joins, a verdict of another
// node arrives, and nothing that the victim knew changes; afterwards the victim uses no
// more resources than before.
func TestHostile(t *testing.T) { // not parallel: it measures
	ctx, b := newBed(t, mesh.ModeLocation)
	for n, a := range Attacks {
		t.Run(a.Name, func(t *testing.T) { underAttack(t, ctx, b, a, n) })
	}
}

// TestHostileSettings has an insider try to make nodes that encrypt everything send in
// plain text on their LAN.
func TestHostileSettings(t *testing.T) {
	ctx, b := newBed(t, mesh.ModeFull)
	target, err := b.Target(0)
	if err != nil {
		t.Fatal(err)
	}
	talk, err := b.TalkOnLAN(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.CountPlainText(ctx); err != nil {
		t.Fatal(err)
	}
	attacking, stop := context.WithTimeout(ctx, 20*time.Second)
	defer stop()
	if err := target.Run(attacking, InPlainText, make(chan struct{})); err != nil {
		t.Error(err)
	}
	if n, err := b.PlainText(ctx); err != nil || n != "0" {
		t.Errorf("packets in plain text on the LAN: got %s, %v, want none", n, err)
	}
	if sent, lost := talk.Stop(); lost > 0 {
		t.Errorf("%d of %d packets on the LAN were lost", lost, sent)
	}
}

// newBed makes a bed that is removed when the test ends. Daemons' logs are printed if it
// has failed.
func newBed(t *testing.T, mode mesh.Mode) (context.Context, *Bed) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	t.Cleanup(cancel)
	b, err := NewBed(ctx, meshd, Options{
		// A busy machine answers pings late.
		Settings: []string{"probe: {interval: 1s, misses: 5}", "cluster:", "  mode: " + string(mode)},
		Env:      []string{FrequentCollection},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range b.Nodes() {
				t.Logf("log of %s:\n%s", n.Name, lastLines(n.Log()))
			}
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return ctx, b
}

// underAttack runs an attack and checks everything that must hold.
func underAttack(t *testing.T, ctx context.Context, b *Bed, a Attack, n int) {
	target, err := b.Target(n)
	if err != nil {
		t.Fatal(err)
	}
	before, err := look(ctx, b)
	if err != nil {
		t.Fatal(err)
	}
	talk, err := b.Talk(ctx)
	if err != nil {
		t.Fatal(err)
	}
	pid := b.Victim.PID()
	stopWatching := watch(b)

	attacking, stop := context.WithCancel(ctx)
	first, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- target.Run(attacking, a, first) }()
	select {
	case <-first:
	case err := <-done:
		t.Fatal(err)
	}
	newcomer, err := b.Join(ctx)
	if err != nil {
		t.Errorf("newcomer: %s", firstWords(err))
	} else {
		t.Logf("newcomer was online after %s", newcomer.Took.Round(time.Millisecond))
	}
	if err := b.Verdict(ctx); err != nil {
		t.Errorf("verdict of an honest node: %s", firstWords(err))
	}
	if shape, err := shapeOf(ctx, b.Victim); err != nil {
		t.Error(err)
	} else if diff := differ(before.shape, shape, about(ctx, target, newcomer)...); len(diff) > 0 {
		t.Errorf("meanwhile the victim has changed:\n%s", strings.Join(diff, "\n"))
	}
	readable(t, ctx, b)
	if s, err := b.Victim.Status(ctx); err != nil || slices.ContainsFunc(s.Problems, func(p mesh.Problem) bool { return p.Kind == mesh.ProblemDuplicate }) {
		t.Errorf("the victim believes that another daemon has its identity: %v, %+v", err, s.Problems)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	peak := stopWatching()
	more := during.most(a.Peak)
	if all := peak.excess(before.usage, more); len(all) > 0 {
		t.Errorf("meanwhile the victim used %s", strings.Join(all, ", "))
	}

	if err := errors.Join(target.Banish(ctx), b.Leave(ctx, newcomer)); err != nil {
		t.Errorf("revoke the insider and the newcomer: %s", firstWords(err))
	}
	after, err := settled(ctx, b, before, a)
	if err != nil {
		t.Errorf("afterwards %v", err)
	}
	if got := b.Victim.PID(); got != pid || exited(b.Victim) {
		t.Errorf("the victim's daemon has ended")
	}
	sent, lost := talk.Stop()
	if lost > 0 {
		t.Errorf("%d of %d packets of the victim's flow were lost", lost, sent)
	}
	t.Logf("%d packets, %d lost; before %+v, peak %+v, after %+v", sent, lost, before.usage, peak, after.usage)
}

func exited(n *lab.Node) bool {
	select {
	case <-n.Exited():
		return true
	default:
		return false
	}
}

// sight is the state of the victim at one moment.
type sight struct {
	usage Usage
	shape []string
}

func look(ctx context.Context, b *Bed) (sight, error) {
	u, err := UsageOf(ctx, b.Victim)
	if err != nil {
		return sight{}, err
	}
	shape, err := shapeOf(ctx, b.Victim)
	return sight{u, shape}, err
}

// settled waits until the victim is as before, except for what an attack may leave.
func settled(ctx context.Context, b *Bed, before sight, a Attack) (sight, error) {
	keeps := a.Keeps
	var about []string
	if a.Many {
		about = claimable
	}
	allowed := Usage{
		always.Descriptors + keeps.Descriptors, always.Goroutines + keeps.Goroutines,
		always.Heap + keeps.Heap, always.RSS + keeps.RSS, always.Disk + keeps.Disk,
	}
	for began := time.Now(); ; time.Sleep(lab.Pause(200*time.Millisecond, began)) {
		now, err := look(ctx, b)
		if err == nil {
			all := append(now.usage.excess(before.usage, allowed), differ(before.shape, now.shape, about...)...)
			if len(all) == 0 {
				return now, nil
			}
			err = fmt.Errorf("the victim has:\n%s", strings.Join(all, "\n"))
		}
		if time.Since(began) > patience || ctx.Err() != nil {
			return now, err
		}
	}
}

// watch samples what the victim uses until the returned function is called, which returns
// the maximum of each value.
func watch(b *Bed) (stop func() Usage) {
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan Usage)
	go func() {
		var most Usage
		for ctx.Err() == nil {
			u, _ := UsageOf(ctx, b.Victim) // what it has found if the rest is not to be had
			most = most.most(u)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		}
		result <- most
	}()
	return func() Usage {
		cancel()
		return <-result
	}
}

// claimable are words in lines about addresses that insiders have claimed.
var claimable = []string{" (none)", fmt.Sprintf(" 10.4.0.%d", firstInsider/100), fmt.Sprintf(" 10.42.%d", firstInsider/100)}

// about are the words by which lines are known that are about a newcomer, or about
// addresses that everybody who has the secret may claim.
func about(ctx context.Context, t *Target, n Newcomer) []string {
	words := slices.Clone(claimable)
	for _, id := range t.Identities() {
		words = append(words, id.String())
	}
	if n.Node == nil {
		return words
	}
	words = append(words, n.Name, n.Address().String())
	if s, err := n.Status(ctx); err == nil {
		for _, a := range s.Node.Overlay {
			words = append(words, a.String())
		}
		for _, p := range s.Node.PodCIDRs {
			words = append(words, p.String(), p.Addr().String())
		}
	}
	return words
}

// readable checks that the victim's output does not harm a terminal.
func readable(t *testing.T, ctx context.Context, b *Bed) {
	t.Helper()
	for _, args := range [][]string{{"status"}, {"status", "-o", "json"}, {"graph"}, {"client", "list"}} {
		ctx, cancel := context.WithTimeout(ctx, patience)
		out, err := b.Victim.Meshd(ctx, args...)
		cancel()
		if err != nil {
			t.Errorf("meshd %s: %v", strings.Join(args, " "), err)
		}
		if line := harmful(out); line != "" {
			t.Errorf("meshd %s has a line that harms a terminal: %q", strings.Join(args, " "), line)
		}
	}
	if line := harmful(b.Victim.Log()); line != "" {
		t.Errorf("the log has a line that harms a terminal: %q", line)
	}
}

// harmful returns a line with unprintable characters or an attacker's text, "" if there
// is none.
func harmful(text string) string {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "nameserver") || strings.ContainsFunc(strings.TrimSuffix(line, "\n"), func(r rune) bool {
			return r != '\t' && !unicode.IsPrint(r)
		}) {
			return line
		}
	}
	return ""
}

// firstWords shortens an error.
func firstWords(err error) string {
	text := err.Error()
	return text[:min(len(text), 600)]
}

func lastLines(log string) string {
	lines := slices.Collect(strings.Lines(log))
	return strings.Join(lines[max(0, len(lines)-40):], "")
}
