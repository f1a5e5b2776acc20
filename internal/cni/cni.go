// SPDX-License-Identifier: Apache-2.0

// Package cni installs the pods' network on the host: the conflist that containerd uses,
// and the plugins that the conflist names.
//
// k3s does not change containerd's defaults, so the conflist belongs in /etc/cni/net.d and
// the plugins in /opt/cni/bin. Missing plugins are linked from the distribution's package.
// [Observe] reads the state of the host, [Plan], which is pure, compares it with the
// desired state, and [Apply] makes only the changes between the two.
//
// Everything of ours is recognisable, and nothing else is changed. The conflist is
// recognised by its file name and its network's name, a plugin's link by its target.
// Two properties of containerd matter. It uses the conflist whose file name sorts first, so
// another one may take precedence over ours, see [Problems]. And it reports the node as
// ready as soon as there is a conflist, so the plugins are installed first.
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

// ProblemConflict is the kind of problem that containerd uses another network's
// configuration instead of ours.
const ProblemConflict mesh.ProblemKind = "cni-conflict"

// PluginNames returns the plugins that pods need, sorted. The conflist does not name
// loopback, but containerd makes no pod without it.
func PluginNames() []string {
	return []string{"bridge", "host-local", "loopback", "portmap"}
}

// Status is the observed state of a host.
type Status struct {
	Conflist  []byte   // the content of ConfDir/FileName, nil if there is no such file
	Others    []string // file names of the other configurations in ConfDir, sorted
	Leftovers []string // paths of our temporary files that a crash has left
	Plugins   []Plugin // one for each of PluginNames
}

// Plugin is the observed state of a plugin.
type Plugin struct {
	Name     string
	Exists   bool   // BinDir has an entry of that name
	Link     string // the target of that entry, "" unless it is a symbolic link
	Works    bool   // the entry is a file, or a link to one
	InSource bool   // PluginSource has the plugin
}

// Change is one step from the observed to the desired state.
type Change struct {
	Kind    ChangeKind
	Path    string
	Target  string // of a link
	Content []byte // of a file
}

// ChangeKind is the kind of a change.
type ChangeKind string

// The kinds of changes.
const (
	Link   ChangeKind = "link"   // make a symbolic link at a free path
	Write  ChangeKind = "write"  // make or replace a file
	Delete ChangeKind = "delete" // delete a file or a link, but not what it points to
)

// String returns the change as a line for people.
func (c Change) String() string {
	if c.Kind == Link {
		return fmt.Sprintf("%s %s -> %s", c.Kind, c.Path, c.Target)
	}
	return fmt.Sprintf("%s %s", c.Kind, c.Path)
}

// Plan returns the changes from the observed state s to the state that c describes, in the
// order in which they must be applied.
//
// An error names what a person has to do first. The changes are then those that are
// possible anyway. The conflist is not among them while a plugin is missing.
func Plan(c Config, s Status) ([]Change, error) {
	want, err := Render(c)
	if err != nil {
		return nil, err
	}
	changes, err := planPlugins(c, s.Plugins)
	if err == nil && !bytes.Equal(s.Conflist, want) {
		path := filepath.Join(c.ConfDir, FileName)
		// Replace a conflist that can't be parsed: containerd can't use it anyway.
		if name, parseErr := networkName(s.Conflist); parseErr == nil && name != NetworkName {
			err = fmt.Errorf("install conflist: %s exists for the network %q; move it away", path, name)
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
			errs = append(errs, fmt.Errorf("link plugin %s: %s exists, is not meshd's, and is neither a file nor a link to one; move it away", p.Name, path))
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

// ours reports whether the plugin in BinDir is a link that meshd has made.
func (p Plugin) ours(c Config) bool {
	return p.Link != "" && filepath.Dir(p.Link) == filepath.Clean(c.PluginSource)
}

// PlanWithdrawal returns the changes that keep new pods from starting with other pod CIDRs
// than those of c, or at all if c has none.
func PlanWithdrawal(c Config, s Status) ([]Change, error) {
	if len(c.PodCIDRs) > 0 {
		want, err := Render(c)
		if err != nil || bytes.Equal(s.Conflist, want) {
			return nil, err
		}
	}
	if name, err := networkName(s.Conflist); err != nil || name != NetworkName {
		return nil, nil // it is not ours, or not there
	}
	return []Change{{Kind: Delete, Path: filepath.Join(c.ConfDir, FileName)}}, nil
}

// PlanRemoval returns the changes that remove everything of ours and nothing else. The
// conflist is removed first, so that containerd doesn't start a pod without plugins.
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

// Problems returns a problem for each configuration that takes precedence over ours,
// sorted. Their Node is empty, because they concern this host.
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
