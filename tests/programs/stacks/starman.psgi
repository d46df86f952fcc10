# A PSGI application for Starman. See the other programs here for its variables.
use strict;
use warnings;
use Time::HiRes qw(time sleep);

die 'broken' if -e ($ENV{BROKEN} // '');
sleep($ENV{START_DELAY} // 0);

sub {
  my $env = shift;
  if ($env->{PATH_INFO} eq '/slow') {
    open my $file, '>', $ENV{IN_FLIGHT} or die;
    # A signal cuts a sleep short.
    my $end = time + 1;
    sleep 0.05 while time < $end;
  }
  my @headers = (
    'content-type' => 'text/plain',
    'x-prefork-generation' => $ENV{PREFORK_GENERATION} // '',
    'x-prefork-pid' => $$,
  );
  return [200, \@headers, ['Hello from Starman']];
}
