// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/connect"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
)

// fakeLinks are links of which a test sees what happens to them.
type fakeLinks struct {
	*links
	t *testing.T

	mu     sync.Mutex
	events []string
	tell   map[string]func(heard bool) // by name: what the link that runs tells its owner by
	err    map[string]error            // by name: with which it ends at once
}

// newFakeLinks returns links that run nothing. All of its functions are called in the bubble of the test.
func newFakeLinks(t *testing.T) *fakeLinks {
	l := &fakeLinks{links: newLinks(slog.New(slog.DiscardHandler)), t: t, tell: make(map[string]func(bool)), err: make(map[string]error)}
	l.run = func(ctx context.Context, o connect.Options) error {
		l.note(fmt.Sprintf("run %s with key %d", o.Interface, o.File.PrivateKey[1]))
		l.mu.Lock()
		err := l.err[o.Interface]
		l.tell[o.Interface] = o.Link
		l.mu.Unlock()
		if err != nil {
			return err
		}
		<-ctx.Done()
		l.note("end " + o.Interface)
		return nil
	}
	l.remove = func(but []string) ([]string, error) {
		l.note(fmt.Sprintf("remove all but %v", but))
		return nil, nil
	}
	return l
}

func (l *fakeLinks) note(event string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, event)
}

// hears has a link that runs tell its owner whether it is heard.
func (l *fakeLinks) hears(name string, heard bool) {
	l.mu.Lock()
	tell := l.tell[name]
	l.mu.Unlock()
	tell(heard)
}

// fails has a link end at once with an error when it is started, or not any more.
func (l *fakeLinks) fails(name string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err[name] = err
}

// expect lets the links run, and compares what has happened since the last call.
func (l *fakeLinks) expect(what string, want ...string) {
	l.t.Helper()
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.Sort(l.events)
	slices.Sort(want)
	if d := cmp.Diff(want, l.events); d != "" {
		l.t.Errorf("%s (-want +got):\n%s", what, d)
	}
	l.events = nil
}

func (l *fakeLinks) mustFollow(ctx context.Context, wanted ...connect.LinkFile) {
	l.t.Helper()
	if err := l.follow(ctx, wanted); err != nil {
		l.t.Fatal(err)
	}
}

// texts returns the texts of the problems.
func (l *fakeLinks) texts() (out []string) {
	for _, p := range l.problems("a1", time.Now()) {
		out = append(out, p.Text)
	}
	slices.Sort(out)
	return out
}

// linkTo returns the file of a link.
func linkTo(name string, key byte, networks ...string) connect.LinkFile {
	f := connect.LinkFile{Name: name, File: connect.File{PrivateKey: wgtypes.Key{1: key}}}
	for _, p := range networks {
		f.Config.Ranges = append(f.Config.Ranges, netip.MustParsePrefix(p))
	}
	return f
}

// TestFollowLinks: links start and end as the files say, and stay when the daemon ends.
func TestFollowLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLinks(t)
		ctx, end := context.WithCancel(t.Context())
		l.mustFollow(ctx, linkTo("west", 1), linkTo("east", 2))
		l.expect("start", "remove all but [west east]", "run west with key 1", "run east with key 2")
		l.mustFollow(ctx, linkTo("west", 1), linkTo("east", 2))
		l.expect("nothing new", "remove all but [west east]")
		l.mustFollow(ctx, linkTo("west", 3), linkTo("east", 2))
		l.expect("a changed key", "end west", "remove all but [west east]", "run west with key 3")
		preshared := linkTo("west", 3)
		preshared.PresharedKey = mesh.PresharedKey{1}
		l.mustFollow(ctx, preshared, linkTo("east", 2))
		l.expect("a changed preshared key", "end west", "remove all but [west east]", "run west with key 3")
		l.mustFollow(ctx, linkTo("east", 2))
		l.expect("one is dropped", "end west", "remove all but [east]")
		end()
		l.expect("the daemon is told to end")
		l.mustFollow(ctx)
		l.expect("it ends: nothing is removed", "end east")
	})
}

// TestLinkState: the state has the order of the files, and wakes the loop when it changes.
func TestLinkState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLinks(t)
		files := []connect.LinkFile{linkTo("west", 1, "10.52.0.0/16", "10.53.0.0/16"), linkTo("east", 2, "10.62.0.0/16")}
		l.mustFollow(t.Context(), files...)
		synctest.Wait()
		check := func(what string, changed, west, east bool) {
			t.Helper()
			select {
			case <-l.changed:
				if !changed {
					t.Errorf("%s: the loop is woken", what)
				}
			default:
				if changed {
					t.Errorf("%s: the loop is not woken", what)
				}
			}
			want := []node.Link{
				{Cluster: "west", Networks: []netip.Prefix{netip.MustParsePrefix("10.52.0.0/16"), netip.MustParsePrefix("10.53.0.0/16")}, Heard: west},
				{Cluster: "east", Networks: []netip.Prefix{netip.MustParsePrefix("10.62.0.0/16")}, Heard: east},
			}
			if d := cmp.Diff(want, l.state(files), compareNet); d != "" {
				t.Errorf("%s: state (-want +got):\n%s", what, d)
			}
		}
		check("at the start", false, false, false)
		l.hears("east", true)
		check("one is heard", true, false, true)
		l.hears("west", true)
		l.hears("east", false)
		check("two changes", true, true, false)
		l.mustFollow(t.Context())
		check("they end", false, false, false)
	})
}

// TestLinkProblems: what is said of links by which nothing comes.
func TestLinkProblems(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLinks(t)
		l.fails("east", errors.New("create device east: no"))
		l.mustFollow(t.Context(), linkTo("west", 1), linkTo("east", 2))
		synctest.Wait()
		const silent, broken = "no node of west answers by this node's link", "the link to east can't be set up: create device east: no"
		check := func(what string, want ...string) {
			t.Helper()
			synctest.Wait()
			if d := cmp.Diff(want, l.texts()); d != "" {
				t.Errorf("%s: problems (-want +got):\n%s", what, d)
			}
		}
		check("at the start", broken)
		l.fails("east", nil)
		time.Sleep(linkPatience - time.Millisecond)
		check("before patience ends", broken)
		time.Sleep(time.Millisecond)
		l.expect("the one that failed runs again", "remove all but [west east]", "run west with key 1", "run east with key 2", "run east with key 2")
		l.hears("east", true)
		check("one is silent", silent)
		l.hears("west", true)
		time.Sleep(time.Hour)
		check("both are heard")
		l.hears("west", false)
		check("one has just become silent")
		time.Sleep(linkPatience)
		check("it stays silent", silent)
		l.mustFollow(t.Context())
		check("they are dropped")
	})
}

// TestReloadWithABrokenLink: a link's file that can't be used changes nothing.
func TestReloadWithABrokenLink(t *testing.T) {
	dir := t.TempDir()
	path, secret, link := filepath.Join(dir, "meshd.yaml"), filepath.Join(dir, "secret"), filepath.Join(dir, "west.conf")
	for file, text := range map[string]string{
		path:   fmt.Sprintf("secret-file: %s\nnode: {name: a, location: new, links: [%s]}\n", secret, link),
		secret: base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, 32)) + "\n",
		link:   "[Interface]\nbroken\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before, had := parse(t, "node: {name: a}"), []connect.LinkFile{linkTo("east", 1)}
	d := &daemon{opt: Options{Config: path}, cfg: before, linkFiles: had, log: newJournal(slog.New(slog.DiscardHandler)), services: hostServices{}}
	d.reload() // a daemon without gossip: it must not come to that
	if d.cfg.Node.Location != "" || len(d.linkFiles) != 1 || d.linkFiles[0].Name != "east" {
		t.Errorf("changed to %+v, links %+v", d.cfg.Node, d.linkFiles)
	}
	if len(d.reloadProblems) != 1 || !strings.Contains(d.reloadProblems[0].Text, "node.links[0]: "+link) {
		t.Errorf("problems: got %+v, want one of node.links[0]", d.reloadProblems)
	}
}
