// SPDX-License-Identifier: Apache-2.0

package connect

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/meshd/meshd/internal/control"
)

// starting is the status until the nodes were asked for the first time.
const starting = "the tunnels are set up; asking the nodes"

// tellStatus tells Options.Status how the tunnels are, each time that it changes. It is one line.
func (c *client) tellStatus(text string) {
	text = strings.ReplaceAll(text, "\n", "; ")
	if c.Status != nil && text != c.toldStatus {
		c.toldStatus = text
		c.Status(text)
	}
}

// trouble returns why no node can be used, or "" if one can.
func (c *client) trouble(err error) string {
	switch {
	case errors.Is(err, errRefused):
		return "the nodes don't know this client any more: it was removed, or another client has its name or address"
	case c.allSilent() && c.config.Resolver != "":
		return "no node answers; the system's own resolver is used until one does; check on a node that meshd client list still shows this client"
	case c.allSilent():
		return "no node answers; check on a node that meshd client list still shows this client"
	}
	return ""
}

// answers reports whether a node counts as one that answers: there is a session with it, and it has
// left no more requests unanswered than can get lost. Most nodes are asked for nothing while the
// service gateway answers.
func (c *client) answers(p control.ClientPeer) bool { return c.sessions[p.PublicKey] && !c.silent(p) }

// statusText describes a configuration in effect, for a person.
func statusText(config control.ClientConfig, answers func(control.ClientPeer) bool) string {
	count := 0
	var services, exits []string
	for _, p := range config.Peers {
		if answers(p) {
			count++
		}
		if p.ServiceGateway {
			services = append(services, p.Name)
		}
		if p.IsExit() {
			exits = append(exits, p.Name)
		}
	}
	text := fmt.Sprintf("%d of %d nodes answer", count, len(config.Peers))
	switch {
	case len(services) > 0 && slices.Equal(services, exits):
		text += "; Services and the internet through " + services[0]
	case len(services) > 0:
		text += "; Services through " + services[0]
	}
	if len(exits) > 0 && !slices.Equal(services, exits) {
		text += "; the internet through " + strings.Join(exits, " and ")
	}
	return text
}
