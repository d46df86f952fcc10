# A Mojolicious application. See the other programs here for its variables.
use Mojolicious::Lite -signatures;
use Mojo::IOLoop;

die 'broken' if -e ($ENV{BROKEN} // '');
select undef, undef, undef, $ENV{START_DELAY} // 0;

# By itself the daemon knows only a stop that waits for nothing. This one announces closes, and waits
# for idle connections until their time-out (5 s).
$SIG{QUIT} = sub { Mojo::IOLoop->stop_gracefully };

hook before_dispatch => sub ($c) {
  $c->res->headers->header('x-prefork-generation' => $ENV{PREFORK_GENERATION} // '');
  $c->res->headers->header('x-prefork-pid'        => $$);
};
get '/slow' => sub ($c) {
  open my $file, '>', $ENV{IN_FLIGHT} or die;
  $c->render_later;
  Mojo::IOLoop->timer(1 => sub { $c->render(text => 'Hello from Mojolicious') });
};
get '/block' => sub ($c) { 1 while 1 };
get '/' => {text => 'Hello from Mojolicious'};

app->mode('production');
app->log->level('error');
app->start;
