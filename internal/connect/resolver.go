// SPDX-License-Identifier: Apache-2.0

package connect

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/meshd/meshd/internal/control"
)

// setResolver makes the configuration's resolver the only one of the system, or restores
// the system's own if the configuration has none. Without resolvconf nothing changes.
func (c *client) setResolver(ctx context.Context, config control.ClientConfig) error {
	text := ""
	if config.Resolver != "" {
		text = "nameserver " + config.Resolver + "\n"
		if len(config.Search) > 0 {
			text += "search " + strings.Join(config.Search, " ") + "\n"
		}
	}
	if text == c.resolverText {
		return nil
	}
	err := c.resolvconf(ctx, text)
	if errors.Is(err, exec.ErrNotFound) {
		c.Logger.Warn("resolvconf is not installed, so names of the cluster don't resolve")
		err = nil
	}
	if err != nil {
		return fmt.Errorf("set resolver: %w", err)
	}
	c.resolverText = text
	return nil
}

// resolvconf sets a link's resolver with resolvconf(8), which systemd-resolved and
// openresolv provide, with the options of wg-quick(8) that make it the only one in use.
// An empty text removes it.
func resolvconf(ctx context.Context, link, text string) error {
	cmd := exec.CommandContext(ctx, "resolvconf", "-d", link, "-f")
	if text != "" {
		cmd = exec.CommandContext(ctx, "resolvconf", "-a", link, "-m", "0", "-x")
		cmd.Stdin = strings.NewReader(text)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("resolvconf: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
