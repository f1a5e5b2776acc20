// SPDX-License-Identifier: Apache-2.0

// Package cni gives the host's pods their network: it sees to it that
// containerd finds a conflist and the plugins that the conflist names.
//
// k3s leaves containerd's defaults alone, so the conflist belongs in
// /etc/cni/net.d and the plugins in /opt/cni/bin. The plugins are Debian's,
// linked there where there are none. What is on the host is observed
// ([Observe]), compared with what is wanted ([Plan], pure), and only the
// difference is applied ([Apply]).
//
// Everything of ours is recognisable, and nothing else is touched: the conflist
// by its file name and its network's name, a plugin's link by where it points.
// Two habits of containerd shape the rest. It takes the conflist whose file name
// sorts first, so another one may shadow ours, see [Problems]. And as soon as
// there is a conflist, it calls the node ready; so the plugins come first.
package cni

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/meshd/meshd/internal/mesh"
)

// FileName is the conflist's name in Config.ConfDir.
const FileName = "10-meshd.conflist"

// ProblemConflict is the kind of problem where containerd uses another
// network's configuration than ours.
const ProblemConflict mesh.ProblemKind = "cni-conflict"

// PluginNames returns the plugins that pods need, sorted. Nothing in the
// conflist names loopback, but containerd makes no pod without it.
func PluginNames() []string {
	return []string{"bridge", "host-local", "loopback", "portmap"}
}

// Status is what there is on a host, as Observe finds it.
type Status struct {
	Conflist  []byte   // the content of ConfDir/FileName, nil for no such file
	Others    []string // file names of the other configurations in ConfDir, sorted
	Leftovers []string // paths of our temporary files, left behind by a crash
	Plugins   []Plugin // one for each of PluginNames
}

// Plugin is what there is of a plugin.
type Plugin struct {
	Name     string
	Exists   bool   // something in BinDir has the name
	Link     string // what that points to, "" unless it is a symbolic link
	Works    bool   // it is a file, or leads to one
	InSource bool   // PluginSource has the plugin
}

// Change is one step from what is to what is wanted.
type Change struct {
	Kind    ChangeKind
	Path    string
	Target  string // of a link
	Content []byte // of a file
}

// ChangeKind says what a change does.
type ChangeKind string

// The kinds of changes.
const (
	Link   ChangeKind = "link"   // make a symbolic link where nothing is
	Write  ChangeKind = "write"  // make or replace a file
	Delete ChangeKind = "delete" // delete a file or a link, but not what it points to
)

// String returns the change as one line for people.
func (c Change) String() string {
	if c.Kind == Link {
		return fmt.Sprintf("%s %s -> %s", c.Kind, c.Path, c.Target)
	}
	return fmt.Sprintf("%s %s", c.Kind, c.Path)
}

// Plan returns the changes that turn s into what c wants, in the order in which
// they have to be applied; none if all is as it should be.
//
// An error says what a person has to do first. The changes beside it are those
// that are possible all the same. The conflist is not among them while a plugin
// is missing.
func Plan(c Config, s Status) ([]Change, error) {
	want, err := Render(c)
	if err != nil {
		return nil, err
	}
	changes, err := planPlugins(c, s.Plugins)
	if err == nil && !bytes.Equal(s.Conflist, want) {
		path := filepath.Join(c.ConfDir, FileName)
		// What can't be parsed is replaced: no containerd could use it.
		if name, parseErr := networkName(s.Conflist); parseErr == nil && name != NetworkName {
			err = fmt.Errorf("install conflist: %s is there for the network %q; move it away", path, name)
		} else {
			changes = append(changes, Change{Kind: Write, Path: path, Content: want})
		}
	}
	return append(changes, deletions(s.Leftovers)...), err
}

func planPlugins(c Config, plugins []Plugin) ([]Change, error) {
	var changes []Change
	var errs []error
	for _, p := range plugins {
		path, source := filepath.Join(c.BinDir, p.Name), filepath.Join(c.PluginSource, p.Name)
		switch {
		case p.Works:
		case p.Exists && !p.ours(c):
			errs = append(errs, fmt.Errorf("link plugin %s: %s is there, is not meshd's, and leads to no file; move it away", p.Name, path))
		case !p.InSource:
			errs = append(errs, fmt.Errorf("link plugin %s: neither %s nor %s exists; install the package containernetworking-plugins", p.Name, path, source))
		default:
			if p.Exists {
				changes = append(changes, Change{Kind: Delete, Path: path})
			}
			changes = append(changes, Change{Kind: Link, Path: path, Target: source})
		}
	}
	return changes, errors.Join(errs...)
}

// ours says whether the plugin in BinDir is a link that we made.
func (p Plugin) ours(c Config) bool {
	return p.Link != "" && filepath.Dir(p.Link) == filepath.Clean(c.PluginSource)
}

// PlanRemoval returns the changes that take everything of ours away, and nothing
// else. The conflist goes first, so that containerd doesn't start a pod without
// plugins.
func PlanRemoval(c Config, s Status) []Change {
	var changes []Change
	if name, err := networkName(s.Conflist); err == nil && name == NetworkName {
		changes = append(changes, Change{Kind: Delete, Path: filepath.Join(c.ConfDir, FileName)})
	}
	for _, p := range s.Plugins {
		if p.ours(c) {
			changes = append(changes, Change{Kind: Delete, Path: filepath.Join(c.BinDir, p.Name)})
		}
	}
	return append(changes, deletions(s.Leftovers)...)
}

func deletions(paths []string) []Change {
	var changes []Change
	for _, path := range paths {
		changes = append(changes, Change{Kind: Delete, Path: path})
	}
	return changes
}

// Problems returns the configurations that come before ours, sorted. Their Node
// is empty: the problem is this host's, whatever its name.
func Problems(c Config, s Status) []mesh.Problem {
	var problems []mesh.Problem
	for _, name := range s.Others {
		if name < FileName {
			problems = append(problems, mesh.Problem{
				Kind:   ProblemConflict,
				Text:   fmt.Sprintf("containerd uses %s and not %s, which sorts after it", filepath.Join(c.ConfDir, name), FileName),
				Advice: "remove that network from the host, or leave the pods to it with cni: {enabled: false}",
			})
		}
	}
	return problems
}
